"""The published weights in eager torch: float32, padded batches, inference mode."""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models import get_model  # type: ignore[import-untyped]

from app.bundle import Bundle
from app.images import LABELS, encoder_input, normalised
from app.images.tags import KINDS
from app.manifest import FamilyName
from app.models.attentive_captioner import AttentiveCaptioner, Memory, Scene
from app.models.captioner import Captioner
from app.models.digits import ReNet, RowReader
from app.models.efficientnet_lite import EfficientNetLite2
from app.models.language_model import LanguageModel
from app.runtime.families.captions import CaptionsPredictor
from app.runtime.families.digits import DigitsPredictor, calibration
from app.runtime.families.image_decoders import DETECTOR, AttentiveDecoder, VectorDecoder
from app.runtime.scores import TextScore
from app.text.penn_treebank import PennTreebank
from app.text.words import Completion, Vocabulary, Word, context, lines, sentences
from tests.bench.serving.peers.eager_graph import EagerGraph
from tests.bench.serving.peers.engines import score_json

WINDOW: Final = 64  # tokens per document whose logits are computed at once


class EagerLanguageModel:
    """Suggestions and scores, without a state cache."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        torch.set_num_threads(threads)
        self._named = {"model": bundle.manifest.model, "version": bundle.manifest.version}
        self._vocabulary = Vocabulary(bundle.text("vocabulary.txt").split("\n"))
        self._tokenizer = PennTreebank(self._vocabulary)
        self._model = _language_model(bundle)
        self._never = torch.tensor([self._vocabulary.end, self._vocabulary.unknown])

    @torch.inference_mode()
    def suggest(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer requests of /next-word for single words."""
        completions = [self._tokenizer.complete(each["text"]) if each["complete"] else None for each in asked]
        before = [
            completion.context if completion else context(each["text"], self._tokenizer)
            for each, completion in zip(asked, completions, strict=True)
        ]
        rows = self._next([self._ids(tokens) for tokens in before])
        return [self._suggestions(*each) for each in zip(asked, completions, before, rows, strict=True)]

    @torch.inference_mode()
    def score(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer requests of /perplexity with one document each."""
        documents = [self._ids(chain.from_iterable(sentences(lines(each["text"]), self._tokenizer))) for each in asked]
        sums = self.log_likelihoods(documents)
        return [self._scored(*each) for each in zip(asked, documents, sums, strict=True)]

    @torch.inference_mode()
    def log_likelihoods(self, documents: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
        """Return the nats of each document, in total and of its unknown words."""
        targets, lengths = _padded(documents)
        inputs = torch.cat([torch.full_like(targets[:1], self._vocabulary.end), targets[:-1]])
        state = self._model.initial_state(len(documents))
        worth = torch.empty(targets.shape)
        for start in range(0, len(targets), WINDOW):
            part = slice(start, start + WINDOW)
            hidden, _, state = self._model(inputs[part], state)  # (T, B) -> (T, B, H)
            logits = self._model.logits(hidden)
            worth[part] = logits.gather(-1, targets[part, :, None])[..., 0] - logits.logsumexp(-1)
        worth *= torch.arange(len(targets))[:, None] < lengths
        unknown = worth * (targets == self._vocabulary.unknown)
        return list(zip(worth.sum(0).tolist(), unknown.sum(0).tolist(), strict=True))

    def _ids(self, tokens: Any) -> list[int]:
        return self._vocabulary.ids(token.text for token in tokens)

    def _next(self, contexts: Sequence[list[int]]) -> Tensor:
        """Return the log-probabilities (B, V) of the next word after each context."""
        tokens, lengths = _padded([[self._vocabulary.end, *ids] for ids in contexts])
        hidden, _, _ = self._model(tokens, self._model.initial_state(len(contexts)))  # (T, B) -> (T, B, H)
        last = hidden[lengths - 1, torch.arange(len(contexts))]
        rows: Tensor = self._model.logits(last).log_softmax(-1)
        rows[:, self._never] = -math.inf
        return rows

    def _suggestions(
        self, asked: dict[str, Any], completion: Completion | None, before: Sequence[Word], row: Tensor
    ) -> dict[str, Any]:
        if completion:
            row = _among(row, completion.candidates)
        values, tokens = row.topk(asked["top_k"])
        ids = self._ids(before)
        unknown = [asked["text"][t.start : t.end] for t, i in zip(before, ids, strict=True) if i == self._never[1]]
        return self._named | {
            "suggestions": [
                {"text": self._written(token, completion), "probability": math.exp(value), "log_probability": value}
                for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
                if value > -math.inf
            ],
            "context_tokens": len(ids),
            "unknown_words": list(dict.fromkeys(unknown)),
            "cached_tokens": 0,
        }

    def _written(self, token: int, completion: Completion | None) -> str:
        words = [self._vocabulary.tokens[token]]
        return completion.text(words) if completion else self._tokenizer.join(words)

    def _scored(self, asked: dict[str, Any], ids: list[int], sums: tuple[float, float]) -> dict[str, Any]:
        score = TextScore(
            log_likelihood=sums[0],
            log_likelihood_unknown=sums[1],
            tokens=len(ids),
            sentences=ids.count(self._vocabulary.end),
            unknown_tokens=ids.count(self._vocabulary.unknown),
            characters=len(asked["text"]),
        )
        formatted = score_json(score)
        return self._named | {"results": [formatted], "corpus": formatted}


class TorchGraph:
    """A torch module with the interface of an ONNX session, so that both share the predictor."""

    def __init__(self, compute: Callable[..., tuple[Tensor, ...]]) -> None:
        self._compute = compute

    def run(self, _: None, feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return all outputs."""
        with torch.inference_mode():
            outputs = self._compute(**{name: torch.from_numpy(value) for name, value in feed.items()})
        return [output.numpy() for output in outputs]


def digits(bundle: Bundle, threads: int) -> DigitsPredictor:
    """Return the digit reader."""
    torch.set_num_threads(threads)
    module = _reader(bundle.manifest.config)
    module.load_state_dict(load_file(bundle.path("weights.safetensors")))
    module.eval()
    graph = TorchGraph(lambda pixels: (module(pixels.float() / 255),))
    return DigitsPredictor(graph, calibration(bundle.manifest.calibration, str(bundle.folder)), precision="fp32")


def captions(bundle: Bundle, threads: int) -> CaptionsPredictor:
    """Return the captioner with folded batch norms in channels-last layout, at the sizes of training."""
    torch.set_num_threads(threads)
    config = bundle.manifest.config
    stored = {name: value.float() for name, value in load_file(bundle.path("weights.safetensors")).items()}
    cnn = {name.removeprefix("cnn."): stored.pop(name) for name in [*stored] if name.startswith("cnn.")}
    attends = DETECTOR in bundle.manifest.files
    decoder = _attentive_decoder(bundle, cnn, stored) if attends else _vector_decoder(config, cnn, stored)
    return CaptionsPredictor(
        decoder,
        PennTreebank.parse(bundle.text("vocabulary.txt")),
        precision="fp32",
        length=config["length"],
        length_penalty=config["length_penalty"],
        repeats=not attends,
    )


MODELS: Final[dict[FamilyName, Callable[[Bundle, int], Any]]] = {
    "language_model": EagerLanguageModel,
    "digits": digits,
    "captions": captions,
}


def _language_model(bundle: Bundle) -> LanguageModel:
    config = bundle.manifest.config
    fields = ("vocabulary_size", "embedding_size", "hidden_sizes", "tied")
    model = LanguageModel(**{field: config[field] for field in fields}, cell=bundle.manifest.cell)  # type: ignore[arg-type]
    stored = load_file(bundle.path("weights.safetensors"))
    model.load_state_dict(stored, strict=False)  # a tied matrix is stored once
    return model.eval()


def _reader(config: dict[str, Any]) -> RowReader | ReNet:
    cell, outputs = config.get("cell", "lstm"), 11 if config["negatives"] else 10  # the last class: no digit
    if config["reader"] == "rows":
        return RowReader(hidden_size=config["hidden_sizes"][0], cell=cell, outputs=outputs)
    return ReNet(list(zip(config["patches"], config["hidden_sizes"], strict=True)), cell=cell, outputs=outputs)


def _vector_decoder(config: dict[str, Any], cnn: dict[str, Tensor], stored: dict[str, Tensor]) -> VectorDecoder:
    network: nn.Module = get_model(config["backbone"], weights=None).eval()
    *_, last = (path for path, layer in network.named_modules() if isinstance(layer, nn.Linear))
    network.set_submodule(last, nn.Identity())
    folded = _folded(network, cnn)
    vocabulary_size, embedding_size = stored["embedding.weight"].shape
    captioner = Captioner(
        vocabulary_size=vocabulary_size,
        feature_size=stored["image.weight"].shape[1],
        embedding_size=embedding_size,
        **{key: config[key] for key in ("hidden_size", "cell", "inject", "tied")},
    )
    captioner.load_state_dict(stored, strict=False)  # a tied matrix is stored once
    captioner.eval()
    return VectorDecoder(
        TorchGraph(lambda pixels: (folded(_photographs(pixels)),)),
        TorchGraph(lambda features: (captioner.begin(features),)),
        TorchGraph(lambda tokens, state: captioner.step(tokens, state)),
    )


def _attentive_decoder(bundle: Bundle, cnn: dict[str, Tensor], stored: dict[str, Tensor]) -> AttentiveDecoder:
    vocabulary, config = Vocabulary(bundle.text("vocabulary.txt").split("\n")), bundle.manifest.config
    captioner = AttentiveCaptioner(
        vocabulary_size=len(vocabulary),
        labels=[vocabulary.ids(label.split()) for label in LABELS],
        kinds=KINDS,
        **{key: config[key] for key in ("embedding_size", "hidden_size", "attention_size", "cell")},
    )
    captioner.load_state_dict(stored)
    captioner.eval()
    folded, detector = _folded(EfficientNetLite2().eval(), cnn), EagerGraph(bundle.path(DETECTOR).read_bytes())

    def see(pixels: Tensor) -> tuple[Tensor, ...]:
        images = torch.from_numpy(encoder_input(pixels.numpy())).to(memory_format=torch.channels_last)
        grid, pooled = folded(images)
        return grid.flatten(2).transpose(1, 2), pooled

    def begin(grid: Tensor, pooled: Tensor, tags: Tensor) -> tuple[Tensor, ...]:
        state, memory = captioner.begin(Scene(tags, grid, pooled))
        return state, torch.zeros(len(tags)), *memory  # no distance from the training photographs

    def step(tokens: Tensor, state: Tensor, photographs: Tensor, **memory: Tensor) -> tuple[Tensor, ...]:
        return captioner.step(tokens, state, Memory(**memory).rows(photographs))

    detect = TorchGraph(lambda images: (detector(images),))
    return AttentiveDecoder(TorchGraph(see), detect, TorchGraph(begin), TorchGraph(step), quick=False)


def _folded(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Return a CNN with batch norms folded as in the bundle."""
    folded: nn.Module = fuse(network)
    folded.load_state_dict(weights)
    return folded.to(memory_format=torch.channels_last)


def _photographs(pixels: Tensor) -> Tensor:
    """(B, 224, 224, 3) uint8 -> (B, 3, 224, 224)."""
    return torch.from_numpy(normalised(pixels.numpy())).to(memory_format=torch.channels_last)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(T, B) int64, the longest row's T, and the lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = np.zeros((int(lengths.max()), len(rows)), np.int64)
    for column, row in enumerate(rows):
        tokens[: len(row), column] = row
    return torch.from_numpy(tokens), lengths


def _among(row: Tensor, candidates: Any) -> Tensor:
    """Renormalise over the candidate completions; None means all words."""
    if candidates is not None:
        allowed = torch.full_like(row, -math.inf)
        allowed[candidates] = row[candidates]
        row = allowed
    return row if row.max() == -math.inf else row - row.logsumexp(-1)
