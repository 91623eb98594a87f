"""Publishing hooks that captioners share."""

import base64
import hashlib
import io
import string
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from typing_extensions import override

from app.bundle import Bundle
from app.errors import CorpusError
from app.images import PHOTO_SIZE, decoded, photo
from app.manifest import CorpusEntry, Manifest
from app.models.attentive_captioner import AttentiveCaptioner
from app.models.captioner import Captioner
from app.models.language_model import parameter_count
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.onnx_session import Precision
from app.runtime.predictor import Resources, answer_all
from training import plots
from training.captions import data as collections
from training.captions.annotations import Photo
from training.captions.attentive.data import AttentiveCorpus
from training.captions.config import CaptionerConfig
from training.captions.data import CaptionCorpus
from training.captions.features import Content
from training.captions.scores import score
from training.captions.vocabulary import words
from training.publishing import CELL_NAMES, PRECISIONS, Measurements, Publisher, load_checkpoint, probe

BATCH: Final = 50  # photographs that are captioned together
GALLERY_EVERY: Final = 40  # of the test photographs, in their order: not hand-picked
GALLERY: Final = 24
PREFIXES: Final = {"val": "valid", "test": "test"}  # of metrics, by split
SCORE_NAMES: Final = {  # scores in the model card
    "cider": "CIDEr",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
}

Corpus = TypeVar("Corpus", bound=CaptionCorpus | AttentiveCorpus)
Model = TypeVar("Model", bound=Captioner | AttentiveCaptioner)


class CaptionerPublisher(Publisher[Corpus, Model]):
    """Publishing hooks of captioners, and those in which they differ."""

    family = "captions"
    package: ClassVar[str]  # of the model card's template
    parity: ClassVar[int]  # validation photographs that are compared with torch
    int8_may_cost: ClassVar[float] = 0.5  # of the validation CIDEr, in percent
    config: CaptionerConfig

    @abstractmethod
    def cnn(self, data: Corpus) -> nn.Module:
        """Return the CNN in the bundle's precision."""

    @abstractmethod
    def graphs(self, data: Corpus, model: Model) -> dict[str, bytes | Path]:
        """Return weights and graphs, by file name."""

    @abstractmethod
    def photos(self, data: Corpus, split: str) -> Sequence[Photo]:
        """Return the readable photographs of a split, in order."""

    @abstractmethod
    def logits(
        self, predictor: CaptionsPredictor, data: Corpus, model: Model, image: Content, tokens: Tensor
    ) -> Tensor:
        """Return the modules' logits (1, T, V) after each of the tokens (1, T)."""

    @abstractmethod
    def card_fields(self, manifest: Manifest, data: Corpus) -> dict[str, str]:
        """Return the captioner's own fields of the model card: at least `table`."""

    def scores(self, data: Corpus, split: str, answers: Sequence[Description]) -> dict[str, float]:
        """Return the metrics of a split's answers; names of those of `val` start with `valid`."""
        return standard_scores(self.photos(data, split), answers, PREFIXES[split])

    def doubts(
        self,
        predictor: CaptionsPredictor,  # noqa: ARG002
        data: Corpus,  # noqa: ARG002
        answers: Sequence[Description],  # noqa: ARG002
    ) -> tuple[dict[str, float], dict[str, float] | None]:
        """Return further metrics and the confidence's calibration, from the `answers` to validation photographs."""
        return {}, None

    def differences(
        self, predictors: Mapping[Precision, CaptionsPredictor], data: Corpus, model: Model
    ) -> dict[str, float]:
        """Return the differences of the modules and the precisions on the same input."""
        return {"torch_difference": self.torch_difference(predictors["fp32"], data, model)}

    @override
    def default_name(self) -> str:
        return "captions"

    @override
    def export(self, data: Corpus, model: Model) -> dict[str, bytes | Path]:
        return {**self.graphs(data, model), "vocabulary.txt": data.vocabulary.file_content().encode()}

    @override
    def describe(self, data: Corpus, model: Model) -> dict[str, Any]:
        length_penalty = self.run.read("result.json")["length_penalty"]
        name, terms = "+".join(each.name for each in data.sources), "; ".join(each.terms for each in data.sources)
        return {
            "config": self.run.read("config.json") | {"length_penalty": length_penalty},
            "normalisation": "ptb",
            "vocabulary_sha256": hashlib.sha256(data.vocabulary.file_content().encode()).hexdigest(),
            "corpus": CorpusEntry(name=name, terms=terms, sha256=data.sha256),
            "parameters": parameter_count(model) + parameter_count(self.cnn(data)),
        }

    @override
    def measure(self, draft: Bundle, data: Corpus, model: Model, scratch: Path) -> Measurements:
        predictors = {p: CaptionsPredictor.open(draft, p, Resources()) for p in PRECISIONS}
        metrics = self.differences(predictors, data, model)
        valid = {p: self.caption(predictor, self.photos(data, "val")) for p, predictor in predictors.items()}
        for precision, answers in valid.items():
            scores = self.scores(data, "val", answers)
            metrics |= {f"{name}_{precision}": value for name, value in scores.items()}
        metrics["int8_cost"] = metrics["valid_cider_fp32"] - metrics["valid_cider_int8"]
        served: Precision = "int8" if metrics["int8_cost"] <= self.int8_may_cost else "fp32"
        metrics |= {n.removesuffix(f"_{served}"): v for n, v in [*metrics.items()] if n.endswith(served)}
        photos = self.photos(data, "test")
        answers = self.caption(predictors[served], photos)
        further, calibration = self.doubts(predictors[served], data, valid[served])
        return Measurements(
            metrics=metrics | self.scores(data, "test", answers) | further,
            served=served,
            probe=probe(predictors, {"image": base64.b64encode(drawn_scene()).decode()}),
            plots=self._plots(photos, answers, f"{draft.manifest.model} {draft.manifest.version}", scratch),
            calibration=calibration,
        )

    @override
    def card(self, manifest: Manifest, data: Corpus, measurements: Measurements) -> str:
        template = string.Template(resources.files(self.package).joinpath("card.md").read_text())
        metrics, config = manifest.metrics, manifest.config
        skipped = f" {len(data.corrupt)} photographs or captions were missing or unreadable, and were skipped."
        return template.substitute(
            model=manifest.model,
            version=manifest.version,
            decoder=f"{CELL_NAMES[manifest.cell]} of {config['hidden_size']} units",
            parameters=f"{manifest.parameters:,}",
            vocabulary=f"{len(data.vocabulary):,}",
            corpus=manifest.corpus.name,
            terms=manifest.corpus.terms,
            caveats="".join(f"\n- {caveat}" for source in data.sources for caveat in source.caveats),
            corrupt=skipped if data.corrupt else "",
            served=manifest.served,
            beam=config["beam_width"],
            length_penalty=f"{config['length_penalty']:g}",
            cost=f"{metrics['int8_cost']:+.2f}",
            difference=f"{metrics['torch_difference']:.1e}",
            gallery_every=GALLERY_EVERY,
            **self.card_fields(manifest, data),
        )

    def trained(self, model: Model, key: str, expected: int, unit: str) -> Model:
        """Return `model` with the run's best weights in the bundle's float16 precision.

        Raise RunError if the run's progress `key` is less than `expected`.
        """
        model.load_state_dict(load_checkpoint(self.run, key, expected, unit)["best"]["weights"])
        model.half().float().eval()
        return model

    def checked(self, data: Corpus) -> Corpus:
        """Return the corpus. Raise RunError if it changed since the training, CorpusError without test photographs."""
        self.run.check_texts(data.sha256)
        if "test" not in data.splits:
            folders = ", ".join(str(source.folder) for source in data.sources)
            raise CorpusError(f"{folders}: expected photographs of the split test to publish with, found none")
        return data

    def caption(self, predictor: CaptionsPredictor, photos: Iterable[Photo], **options: Any) -> list[Description]:
        """Caption photographs as in the server, with the configuration's beam and `options` of a request."""
        return caption_images(predictor, collections.contents(photos), self.config.beam_width, **options)

    @torch.inference_mode()
    def torch_difference(self, predictor: CaptionsPredictor, data: Corpus, model: Model) -> float:
        """Return the largest difference of the modules' and the graphs' log-probabilities, from pixels to all words.

        It is measured on one caption of each of `parity` validation photographs.
        """
        decoder, largest, end = predictor.decoder, 0.0, data.vocabulary.end
        photos = self.photos(data, "val")[: self.parity]
        for each, image in zip(photos, collections.contents(photos), strict=True):
            tokens = [end, *data.vocabulary.ids(words(each.captions[0]))]
            expected = self.logits(predictor, data, model, image, torch.tensor([tokens])).log_softmax(-1)[0].numpy()
            sight = decoder.see(image.content, image.name, tags=True)
            state = sight.state
            for token, row in zip(tokens, expected, strict=True):  # row: (V,)
                output = decoder.decode([token], state, [sight], [0])
                state = output.states
                largest = max(largest, float(np.abs(output.log_probabilities[0] - row).max()))
        return largest

    def _plots(
        self, photos: Sequence[Photo], answers: Sequence[Description], title: str, folder: Path
    ) -> dict[str, Path]:
        """Draw the plots of the model card into `folder`; return their paths by file name."""
        curves, gallery = folder / "curves.png", folder / "gallery.png"
        plots.caption_curves(self.run.metrics(), curves, title)
        chosen = slice(0, GALLERY * GALLERY_EVERY, GALLERY_EVERY)
        shown = collections.contents(photos[chosen])
        pixels = [photo(decoded(content, name=name, least=PHOTO_SIZE)) for name, content in shown]
        plots.gallery(pixels, [answer.text for answer in answers[chosen]], gallery)
        return {"curves.png": curves, "gallery.png": gallery}


def caption_images(
    predictor: CaptionsPredictor, contents: Iterable[Content], beam: int, **options: Any
) -> list[Description]:
    """Caption images as in the server, BATCH of them at a time, with `options` of a request."""
    answers, waiting = list[Description](), iter(contents)
    while batch := [*islice(waiting, BATCH)]:
        payloads = [Describe(content, name, beam, **options) for name, content in batch]
        answers += answer_all(predictor, [predictor.prepare(payload) for payload in payloads])
    return answers


def standard_scores(photos: Sequence[Photo], answers: Sequence[Description], prefix: str) -> dict[str, float]:
    """Return the standard scores in percent and the number of distinct captions; METEOR is missing without Java."""
    captions = [answer.text for answer in answers]
    scores = asdict(score(captions, [photo.captions for photo in photos]))
    measured = {f"{prefix}_{name}": value for name, value in scores.items() if isinstance(value, float)}
    return measured | {f"{prefix}_distinct": float(len(set(captions)))}


def drawn_scene() -> bytes:
    """Draw the probe's image, a PNG of a dog-like shape on a lawn: decoded identically everywhere."""
    image = Image.new("RGB", (PHOTO_SIZE, PHOTO_SIZE), "#8ec5ee")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 120, PHOTO_SIZE, PHOTO_SIZE), "#4c8f3a")
    pen.ellipse((60, 95, 150, 150), "#6b4423")
    pen.ellipse((135, 70, 180, 115), "#6b4423")
    for left in (70, 90, 120, 138):
        pen.rectangle((left, 135, left + 9, 185), "#5a3a1e")
    pen.line((62, 115, 35, 85), "#6b4423", 7)
    pen.ellipse((185, 165, 207, 187), "#d7263d")
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
