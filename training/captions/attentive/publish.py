"""Publishing of an attentive captioner: a run -> a measured bundle."""

import base64
import hashlib
import string
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from typing_extensions import override

from app.bundle import Bundle
from app.errors import CorpusError
from app.images import ENCODER_SIZE, decoded, photo
from app.images.tags import tag_slots
from app.manifest import CorpusEntry, Manifest
from app.models.attentive_captioner import AttentiveCaptioner, Scene
from app.models.language_model import parameter_count
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.families.confidence import Confidence, Signs
from app.runtime.families.image_decoders import AttentiveDecoder, Sight
from app.runtime.onnx_session import Precision
from app.runtime.predictor import Resources, answer_all
from training import plots
from training.captions import data as collections
from training.captions.attentive import data
from training.captions.attentive.config import AttentiveConfig
from training.captions.attentive.data import AttentiveCorpus
from training.captions.attentive.doubt import fit, measure, right
from training.captions.attentive.export import export_attentive
from training.captions.attentive.measures import measures
from training.captions.attentive.recipe import build
from training.captions.attentive.sights import encoders
from training.captions.attentive.unlike import unlike
from training.captions.features import Content
from training.captions.publish import (
    BATCH,
    GALLERY,
    GALLERY_EVERY,
    INT8_MAY_COST,
    SCORE_NAMES,
    TITLE,
    CaptionedSplit,
    drawn_scene,
    preprocessed,
)
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

PARITY = 20  # validation photographs
FITTED, FRESH = 600, 300  # images unlike photographs: to fit doubt with, to measure it on
MEASURES = ("distinct", "commonest", "named", "grounded", "repeats")

Data: TypeAlias = AttentiveCorpus


def is_attentive(run: Run) -> bool:
    """Return whether a run of the family captions is of this recipe."""
    return "attention_size" in run.read("config.json")


def publish(run: Run, store: Path, *, name: str | None = None, version: str | None = None) -> Path:
    """Publish `run` as `publish_run` does.

    The validation photographs are captioned with both precisions, as in the server; int8 is served if it costs at most
    INT8_MAY_COST of their mean CIDEr. The served precision captions the test photographs, once. Raise RunError if the
    run used other photographs or texts.
    """
    return publish_run(AttentivePublisher(run), store, name, version)


class AttentivePublisher(Publisher[Data, AttentiveCaptioner]):
    """Publishing hooks of attentive captioners."""

    family = "captions"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.config = AttentiveConfig(**run.read("config.json"))

    @override
    def default_name(self) -> str:
        return TITLE

    @override
    def load(self) -> Data:
        described = self.run.read("source.json")
        sources = [
            collections.source(Path(folder), terms)
            for folder, terms in zip(described["folders"], described["terms"], strict=True)
        ]
        seen_by = encoders(Path(described["weights"]), Path(described["detector"]))
        texts = [Path(path) for path in described["texts"]]
        cache, fewest = Path(described["cache"]), self.config.min_count
        corpus = data.load(sources, texts, seen_by, views=1, min_count=fewest, cache=cache)
        self.run.check_texts(corpus.sha256)
        if "test" not in corpus.splits:
            raise CorpusError(f"{described['name']}: expected photographs of the split test to publish, found none")
        return corpus

    @override
    def build(self, data: Data) -> AttentiveCaptioner:
        checkpoint = load_checkpoint(self.run)
        expected = self.config.steps + self.config.reward_steps
        require_finished(self.run, expected, checkpoint["progress"]["step"], "steps")
        model = build(self.config, data)
        model.load_state_dict(checkpoint["best"]["weights"])
        return model.half().float().eval()

    @override
    def export(self, data: Data, model: AttentiveCaptioner) -> dict[str, bytes | Path]:
        cnn = data.encoders.cnn.half().float().eval()
        pooled = data.splits["train"].pooled[:, 0]
        files = export_attentive(model, cnn, data.encoders.detector_file.read_bytes(), pooled)
        return {**files, "vocabulary.txt": data.vocabulary.file_content().encode()}

    @override
    def describe(self, data: Data, model: AttentiveCaptioner) -> dict[str, Any]:
        length_penalty = self.run.read("result.json")["length_penalty"]
        terms = "; ".join(source.terms for source in data.sources)
        name = "+".join(source.name for source in data.sources)
        return {
            "config": self.run.read("config.json") | {"length_penalty": length_penalty},
            "normalisation": "ptb",
            "vocabulary_sha256": hashlib.sha256(data.vocabulary.file_content().encode()).hexdigest(),
            "corpus": CorpusEntry(name=name, terms=terms, sha256=data.sha256),
            "parameters": parameter_count(model) + parameter_count(data.encoders.cnn),
        }

    @override
    def measure(self, draft: Bundle, data: Data, model: AttentiveCaptioner, scratch: Path) -> Measurements:
        beam = self.config.beam_width
        predictors = {p: CaptionsPredictor.open(draft, p, Resources()) for p in PRECISIONS}
        metrics = {"torch_difference": torch_difference(predictors["fp32"], model, data)}
        for precision, predictor in predictors.items():
            found = split_metrics(predictor, data, "val", beam)
            metrics |= {f"{name}_{precision}": value for name, value in found.items()}
        metrics["int8_cost"] = metrics["valid_cider_fp32"] - metrics["valid_cider_int8"]
        served: Precision = "int8" if metrics["int8_cost"] <= INT8_MAY_COST else "fp32"
        metrics |= {n.removesuffix(f"_{served}"): v for n, v in [*metrics.items()] if n.endswith(served)}
        metrics |= split_metrics(predictors[served], data, "test", beam)
        plain = split_metrics(predictors[served], data, "val", beam, tags=False)
        metrics |= {f"untagged_{name}": value for name, value in plain.items()}
        shown = data.splits["test"].photos[: GALLERY * GALLERY_EVERY : GALLERY_EVERY]
        answers = described(predictors[served], collections.contents(shown), beam)
        calibration, doubts = calibrated(predictors[served], data, beam)
        curves, gallery = scratch / "curves.png", scratch / "gallery.png"
        plots.caption_curves(self.run.metrics(), curves, f"{draft.manifest.model} {draft.manifest.version}")
        plots.gallery(list(preprocessed(shown)), [answer.text for answer in answers], gallery)
        payload = {"image": base64.b64encode(drawn_scene()).decode()}
        files = {"curves.png": curves, "gallery.png": gallery}
        return Measurements(
            metrics=metrics | doubts,
            served=served,
            probe=probe(predictors, payload),
            plots=files,
            calibration=calibration,
        )

    @override
    def card(self, manifest: Manifest, data: Data, measurements: Measurements) -> str:
        return model_card(manifest, data)


def described(
    predictor: CaptionsPredictor, contents: Iterable[Content], beam: int, *, tags: bool = True
) -> list[Description]:
    """Caption images as in the server, BATCH of them at a time."""
    answers, waiting = list[Description](), iter(contents)
    while batch := [*islice(waiting, BATCH)]:
        payloads = [Describe(content, name, beam, tags=tags) for name, content in batch]
        answers += answer_all(predictor, [predictor.prepare(payload) for payload in payloads])
    return answers


def calibrated(predictor: CaptionsPredictor, corpus: Data, beam: int) -> tuple[dict[str, float], dict[str, float]]:
    """Fit the confidence on every second validation photograph; return it, and its measures on the others.

    With them go images unlike photographs, FITTED and FRESH ones.
    """
    photos = corpus.splits["val"].photos
    answers = described(predictor, collections.contents(photos), beam)
    is_right, signs = right(answers, [photo.captions for photo in photos]), _signs(answers)
    drawn = [
        _signs(described(predictor, (Content("drawn", each) for each in unlike(count, seed)), beam))
        for seed, count in enumerate((FITTED, FRESH))
    ]
    calibration = fit(signs[::2], is_right[::2], drawn[0])
    return calibration, measure(Confidence(calibration), signs[1::2], is_right[1::2], drawn[1])


def _signs(answers: Sequence[Description]) -> list[Signs]:
    return [answer.signs for answer in answers if answer.signs is not None]


def split_metrics(
    predictor: CaptionsPredictor, corpus: Data, split: str, beam: int, *, tags: bool = True
) -> dict[str, float]:
    """Scores and measures of a split: of each collection in it, and the mean of their scores."""
    prefix, held = "valid" if split == "val" else split, corpus.splits[split]
    found: dict[str, float] = {}
    scores = list[dict[str, float]]()
    for index, source in enumerate(corpus.sources):
        photos = [photo for photo, owner in zip(held.photos, held.collections, strict=True) if owner == index]
        if photos:
            answers = described(predictor, collections.contents(photos), beam, tags=tags)
            captioned = CaptionedSplit(photos, answers).metrics(prefix)
            captioned |= {
                f"{prefix}_{name}": value
                for name, value in measures(answers, [photo.captions for photo in photos]).items()
            }
            scores.append(captioned)
            found |= {f"{name}_{source.name}": value for name, value in captioned.items()}
    shared = set.intersection(*(set(each) for each in scores))
    return found | {name: float(np.mean([each[name] for each in scores])) for name in sorted(shared)}


@torch.inference_mode()
def torch_difference(predictor: CaptionsPredictor, model: AttentiveCaptioner, corpus: Data) -> float:
    """Return the largest difference of the modules' and the graphs' log-probabilities, from pixels to all words.

    It is measured on one caption of each of PARITY validation photographs.
    """
    decoder, largest, end = predictor.decoder, 0.0, corpus.vocabulary.end
    assert isinstance(decoder, AttentiveDecoder)
    split = corpus.splits["val"]
    photos = split.photos[:PARITY]
    for each, (name, content) in zip(photos, collections.contents(photos), strict=True):
        tokens = [end, *corpus.vocabulary.ids(words(each.captions[0]))]
        image = decoded(content, name=name)
        tags = tag_slots(decoder.detected(image))[None]
        pixels = torch.from_numpy(photo(image, ENCODER_SIZE)).permute(2, 0, 1)[None]
        grid, pooled = corpus.encoders.cnn((pixels - 127.0) / 128)
        scene = Scene(torch.from_numpy(tags), grid.flatten(2).transpose(1, 2), pooled)
        expected = model(scene, torch.tensor([tokens])).log_softmax(-1)[0].numpy()  # (T, V)
        state, _, *memory = decoder.begin(*decoder.encoded(photo(image, ENCODER_SIZE)), tags)
        sight = Sight(state, tuple(memory))
        for token, row in zip(tokens, expected, strict=True):
            output = decoder.decode([token], state, [sight], [0])
            state = output.states
            largest = max(largest, float(np.abs(output.log_probabilities[0] - row).max()))
    return largest


def model_card(manifest: Manifest, corpus: Data) -> str:
    """Return the bundle's README.md: training data and terms, metrics, limitations."""
    template = string.Template(resources.files("training.captions.attentive").joinpath("card.md").read_text())
    metrics, config = manifest.metrics, manifest.config
    skipped = f" {len(corpus.corrupt)} photographs or captions were missing or unreadable, and were skipped."
    caveats = [caveat for source in corpus.sources for caveat in source.caveats]
    return template.substitute(
        model=manifest.model,
        version=manifest.version,
        decoder=f"{CELL_NAMES[manifest.cell]} of {config['hidden_size']} units",
        parameters=f"{manifest.parameters:,}",
        vocabulary=f"{len(corpus.vocabulary):,}",
        corpus=manifest.corpus.name,
        sentences=f"{len(corpus.sentences):,}",
        terms=manifest.corpus.terms,
        steps=f"{config['steps']:,}",
        reward_steps=f"{config['reward_steps']:,}",
        caveats="".join(f"\n- {caveat}" for caveat in caveats),
        corrupt=skipped if corpus.corrupt else "",
        table=_table(metrics, corpus),
        served=manifest.served,
        beam=config["beam_width"],
        length_penalty=f"{config['length_penalty']:g}",
        cost=f"{metrics['int8_cost']:+.2f}",
        difference=f"{metrics['torch_difference']:.1e}",
        answered=f"{metrics['answered']:.1%}",
        rejected=f"{metrics['rejected']:.1%}",
        error=f"{metrics['calibration_error']:.1%}",
        gallery_every=GALLERY_EVERY,
    )


def _table(metrics: dict[str, float], corpus: Data) -> str:
    """Scores and measures by split and collection, of validation without the detector too."""
    columns = {
        f"{title} {source.name}": (prefix, source.name)
        for title, prefix in (("validation", "valid"), ("without tags", "untagged_valid"), ("test", "test"))
        for source in corpus.sources
        if f"{prefix}_cider_{source.name}" in metrics
    }
    rows = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for key in (*SCORE_NAMES, *MEASURES):
        values = [metrics.get(f"{prefix}_{key}_{name}") for prefix, name in columns.values()]
        shown = ("-" if value is None else f"{value:.3f}" if key in MEASURES else f"{value:.1f}" for value in values)
        rows.append(f"| {SCORE_NAMES.get(key, key)} | {' | '.join(shown)} |")
    return "\n".join(rows)
