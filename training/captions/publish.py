"""Publishing of a captioner: a run -> a measured bundle."""

import base64
import hashlib
import io
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import fx
from typing_extensions import override

from app.bundle import Bundle
from app.errors import CorpusError
from app.images import PHOTO_SIZE, decoded, normalised, photo
from app.manifest import CorpusEntry, Manifest
from app.models.captioner import Captioner
from app.models.language_model import parameter_count
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.families.image_decoders import VectorDecoder
from app.runtime.onnx_session import Precision
from app.runtime.predictor import Resources, answer_all
from training import plots
from training.captions import data, features
from training.captions.annotations import Photo
from training.captions.config import CaptionsConfig
from training.captions.data import CaptionCorpus, Source
from training.captions.export import export_captions
from training.captions.recipe import build
from training.captions.scores import score
from training.captions.vocabulary import words
from training.publishing import (
    CELL_NAMES,
    PRECISIONS,
    Measurements,
    Publisher,
    load_checkpoint,
    probe,
    publish_run,
    require_finished,
)
from training.run import Run

INT8_MAY_COST = 0.5  # of the validation CIDEr, in percent
PARITY = 100  # validation photographs
BATCH = 50  # photographs that are captioned together
GALLERY_EVERY = 40  # of the test photographs, in their order: not hand-picked
GALLERY = 24
TITLE = "captions"

CaptionData: TypeAlias = tuple[CaptionCorpus, fx.GraphModule]  # the corpus and the CNN


@dataclass(frozen=True)
class CaptionedSplit:
    """The photographs of a split and a predictor's answers."""

    photos: list[Photo]
    answers: list[Description]

    def metrics(self, split: str) -> dict[str, float]:
        """The standard scores in percent and the number of distinct captions; METEOR is missing without Java."""
        captions = [answer.text for answer in self.answers]
        scores = asdict(score(captions, [photo.captions for photo in self.photos]))
        measured = {f"{split}_{name}": value for name, value in scores.items() if isinstance(value, float)}
        return measured | {f"{split}_distinct": float(len(set(captions)))}


def publish(run: Run, store: Path, *, name: str | None = None, version: str | None = None) -> Path:
    """Publish `run` as `publish_run` does.

    The validation photographs are captioned with both precisions, as in the server; int8 is served if it costs at most
    INT8_MAY_COST of their CIDEr. The served precision captions the test photographs, once. Raise RunError if the run
    used other photographs.
    """
    return publish_run(CaptionsPublisher(run), store, name, version)


class CaptionsPublisher(Publisher[CaptionData, Captioner]):
    """Publishing hooks of captioners."""

    family = "captions"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.config = CaptionsConfig(**run.read("config.json"))

    @override
    def default_name(self) -> str:
        return TITLE

    @override
    def load(self) -> CaptionData:
        return _corpus(self.run, self.config)

    @override
    def build(self, data: CaptionData) -> Captioner:
        return trained(self.run, self.config, data[0])

    @override
    def export(self, data: CaptionData, model: Captioner) -> dict[str, bytes | Path]:
        corpus, network = data
        return {**export_captions(model, network), "vocabulary.txt": corpus.vocabulary.file_content().encode()}

    @override
    def describe(self, data: CaptionData, model: Captioner) -> dict[str, Any]:
        corpus, network = data
        source = corpus.source
        length_penalty = self.run.read("result.json")["length_penalty"]
        return {
            "config": self.run.read("config.json") | {"length_penalty": length_penalty},
            "normalisation": "ptb",
            "vocabulary_sha256": hashlib.sha256(corpus.vocabulary.file_content().encode()).hexdigest(),
            "corpus": CorpusEntry(name=source.name, terms=source.terms, sha256=corpus.sha256),
            "parameters": parameter_count(model) + parameter_count(network),
        }

    @override
    def measure(self, draft: Bundle, data: CaptionData, model: Captioner, scratch: Path) -> Measurements:
        corpus, network = data
        beam = self.config.beam_width
        predictors = {p: CaptionsPredictor.open(draft, p, Resources()) for p in PRECISIONS}
        metrics = compare_precisions(predictors, model, network, corpus, beam)
        served: Precision = "int8" if metrics["int8_cost"] <= INT8_MAY_COST else "fp32"
        test = caption_photographs(predictors[served], _photos(corpus, "test"), beam)
        payload = {"image": base64.b64encode(drawn_scene()).decode()}
        plain = {name.removesuffix(f"_{served}"): value for name, value in metrics.items() if name.endswith(served)}
        return Measurements(
            metrics=metrics | plain | test.metrics("test"),
            served=served,
            probe=probe(predictors, payload),
            plots=card_plots(self.run, test, f"{draft.manifest.model} {draft.manifest.version}", scratch),
        )

    @override
    def card(self, manifest: Manifest, data: CaptionData, measurements: Measurements) -> str:
        return model_card(manifest, data[0])


def trained(run: Run, config: CaptionsConfig, corpus: CaptionCorpus) -> Captioner:
    """Return the run's best model in the bundle's float16 precision; raise RunError if the run is not finished."""
    checkpoint = load_checkpoint(run)
    require_finished(run, config.epochs + config.reward_epochs, checkpoint["progress"]["epoch"], "finished epochs")
    model = build(config, corpus)
    model.load_state_dict(checkpoint["best"]["weights"])
    return model.half().float().eval()


def compare_precisions(
    predictors: dict[Precision, CaptionsPredictor],
    model: Captioner,
    network: fx.GraphModule,
    corpus: CaptionCorpus,
    beam: int,
) -> dict[str, float]:
    """Validation metrics of both precisions, the cost of int8, and the fp32 graphs' difference from torch."""
    photos = _photos(corpus, "val")
    metrics = {"torch_difference": torch_difference(predictors["fp32"], model, network, corpus)}
    for precision, predictor in predictors.items():
        scores = caption_photographs(predictor, photos, beam).metrics("valid")
        metrics |= {f"{name}_{precision}": value for name, value in scores.items()}
    return metrics | {"int8_cost": metrics["valid_cider_fp32"] - metrics["valid_cider_int8"]}


def caption_photographs(predictor: CaptionsPredictor, photos: Sequence[Photo], beam: int) -> CaptionedSplit:
    """Caption photographs as in the server, BATCH of them at a time."""
    contents, answers = data.contents(photos), list[Description]()
    payloads = (Describe(content, name, beam) for name, content in contents)
    while batch := [predictor.prepare(payload) for payload in islice(payloads, BATCH)]:
        answers += answer_all(predictor, batch)
    return CaptionedSplit(list(photos), answers)


@torch.inference_mode()
def torch_difference(
    predictor: CaptionsPredictor, model: Captioner, network: fx.GraphModule, corpus: CaptionCorpus
) -> float:
    """Return the largest difference of the modules' and the graphs' log-probabilities, from pixels to all words.

    It is measured on one caption of each of PARITY validation photographs.
    """
    decoder, largest, end = predictor.decoder, 0.0, corpus.vocabulary.end
    assert isinstance(decoder, VectorDecoder)
    photos = _photos(corpus, "val")[:PARITY]
    for photograph, pixels in zip(photos, preprocessed(photos), strict=True):
        tokens = [end, *corpus.vocabulary.ids(words(photograph.captions[0]))]
        image = torch.from_numpy(normalised(pixels[None]))
        expected = model(network(image), torch.tensor([tokens])).log_softmax(-1)[0].numpy()  # (T, V)
        state = decoder.begin(decoder.features(pixels[None]))
        for token, row in zip(tokens, expected, strict=True):
            output = decoder.decode([token], state)
            state = output.states
            largest = max(largest, float(np.abs(output.log_probabilities[0] - row).max()))
    return largest


def preprocessed(photos: Iterable[Photo]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the pixels (224, 224, 3) of photographs, as in the server."""
    return (photo(decoded(each.content, name=each.name, least=PHOTO_SIZE)) for each in data.contents(photos))


def card_plots(run: Run, test: CaptionedSplit, title: str, folder: Path) -> dict[str, Path]:
    """Draw the plots of the model card into `folder`; return their paths by file name."""
    curves, gallery = folder / "curves.png", folder / "gallery.png"
    plots.caption_curves(run.metrics(), curves, title)
    chosen = slice(0, GALLERY * GALLERY_EVERY, GALLERY_EVERY)
    plots.gallery(list(preprocessed(test.photos[chosen])), [answer.text for answer in test.answers[chosen]], gallery)
    return {"curves.png": curves, "gallery.png": gallery}


def model_card(manifest: Manifest, corpus: CaptionCorpus) -> str:
    """Return the bundle's README.md: training data and terms, metrics, limitations."""
    template = string.Template(resources.files("training.captions").joinpath("card.md").read_text())
    metrics, config = manifest.metrics, manifest.config
    skipped = f" {len(corpus.corrupt)} photographs or captions were missing or unreadable, and were skipped."
    rewarded = f", then {config['reward_epochs']} over the photographs with CIDEr-D as reward"
    return template.substitute(
        model=manifest.model,
        version=manifest.version,
        decoder=f"{CELL_NAMES[manifest.cell]} of {config['hidden_size']} units",
        inject=INJECT_TEXTS[config["inject"]],
        backbone=corpus.backbone,
        parameters=f"{manifest.parameters:,}",
        vocabulary=f"{len(corpus.vocabulary):,}",
        corpus=manifest.corpus.name,
        terms=manifest.corpus.terms,
        epochs=f"{config['epochs']} passes over the captions{rewarded if config['reward_epochs'] else ''}",
        caveats="".join(f"\n- {caveat}" for caveat in corpus.source.caveats),
        corrupt=skipped if corpus.corrupt else "",
        table=_table(metrics, len(corpus.splits["val"].names), len(corpus.splits["test"].names)),
        served=manifest.served,
        beam=config["beam_width"],
        length_penalty=f"{config['length_penalty']:g}",
        cost=f"{metrics['int8_cost']:+.2f}",
        difference=f"{metrics['torch_difference']:.1e}",
        gallery_every=GALLERY_EVERY,
    )


INJECT_TEXTS = {  # how the photograph enters: see app.models.captioner
    "chapter": "whose first step alone also sees the photograph",
    "init": "whose state starts from the photograph",
    "pre": "whose first word is the photograph",
}
SCORE_NAMES = {  # scores in the model card
    "cider": "CIDEr",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
}


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


def _corpus(run: Run, config: CaptionsConfig) -> CaptionData:
    """The run's corpus and its CNN, in the bundle's float16 precision."""
    described = run.read("source.json")
    weights = described.get("weights")
    backbone = features.backbone(config.backbone, None if weights is None else Path(weights))
    source = Source(described["name"], Path(described["folder"]), described["terms"], tuple(described["caveats"]))
    corpus = data.load(source, backbone, views=1, min_count=config.min_count)
    run.check_texts(corpus.sha256)
    if "test" not in corpus.splits:
        raise CorpusError(f"{source.folder}: expected photographs of the split test to publish with, found none")
    network = backbone.module.half().float().eval()
    assert isinstance(network, fx.GraphModule), "training.captions.features folds its batch norms"
    return corpus, network


def _photos(corpus: CaptionCorpus, split: str) -> list[Photo]:
    """The readable photographs of a split, in order."""
    return [each for each in data.photos(corpus.source) if each.split == split and each.name not in corpus.corrupt]


def _table(metrics: Mapping[str, float], valid: int, test: int) -> str:
    rows = [f"| | validation ({valid:,} photographs) | test ({test:,} photographs) |", "| --- | --- | --- |"]
    for key, title in SCORE_NAMES.items():
        values = [
            f"{metrics[name]:.1f}" if (name := f"{split}_{key}") in metrics else "-" for split in ("valid", "test")
        ]
        rows.append(f"| {title} | {' | '.join(values)} |")
    rows.append(f"| different captions | {metrics['valid_distinct']:,.0f} | {metrics['test_distinct']:,.0f} |")
    return "\n".join(rows)
