"""Publishing of an attentive captioner: a run -> a measured bundle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, fx
from typing_extensions import override

from app.images import DETECTOR_SIZE, ENCODER_SIZE, Detection, decoded, encoder_input, photo
from app.images.tags import tag_slots
from app.manifest import Manifest
from app.models.attentive_captioner import AttentiveCaptioner, Scene
from app.runtime.families.captions import CaptionsPredictor, Description
from app.runtime.families.confidence import Signs
from app.runtime.families.image_decoders import AttentiveDecoder
from app.runtime.onnx_session import Precision
from training.captions import data as collections
from training.captions.annotations import Photo
from training.captions.attentive import data
from training.captions.attentive.config import AttentiveConfig
from training.captions.attentive.data import AttentiveCorpus
from training.captions.attentive.doubt import fit, measure, right
from training.captions.attentive.export import export_attentive
from training.captions.attentive.looks import found_again, measure_looks
from training.captions.attentive.measures import gendered, measures, neutralised
from training.captions.attentive.recipe import build
from training.captions.attentive.sights import encoders
from training.captions.attentive.unlike import unlike
from training.captions.features import Content
from training.captions.publisher import PREFIXES, SCORE_NAMES, CaptionerPublisher, caption_images, standard_scores
from training.publishing import publish_run
from training.run import Run

CALIBRATED = 64  # photographs that the scales of the CNN's int8 activations come from
LOOKED = 300  # photographs of the pointing game and of deletion
FITTED, FRESH = 600, 300  # images unlike photographs: to fit doubt with, to measure it on
MEASURES = ("distinct", "commonest", "named", "grounded", "repeats")


def is_attentive(run: Run) -> bool:
    """Return whether a run of the family captions is of this recipe."""
    return "attention_size" in run.read("config.json")


def publish(run: Run, store: Path, *, name: str | None = None, version: str | None = None) -> Path:
    """Publish `run` as `publish_run` does.

    The validation photographs are captioned with both precisions, as in the server; int8 is served if it costs at most
    `int8_may_cost` of their mean CIDEr. The served precision captions the test photographs, once. Raise RunError if the
    run used other photographs or texts.
    """
    return publish_run(AttentivePublisher(run), store, name, version)


class AttentivePublisher(CaptionerPublisher[AttentiveCorpus, AttentiveCaptioner]):
    """Publishing hooks of attentive captioners."""

    package = "training.captions.attentive"
    parity = 20
    int8_may_cost = 0.3

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.config: AttentiveConfig = AttentiveConfig(**run.read("config.json"))

    @override
    def load(self) -> AttentiveCorpus:
        described = self.run.read("source.json")
        sources = [
            collections.source(Path(folder), terms)
            for folder, terms in zip(described["folders"], described["terms"], strict=True)
        ]
        seen_by = encoders(Path(described["weights"]), Path(described["detector"]))
        texts = [Path(path) for path in described["texts"]]
        cache, fewest = Path(described["cache"]), self.config.min_count
        return self.checked(data.load(sources, texts, seen_by, views=1, min_count=fewest, cache=cache))

    @override
    def build(self, data: AttentiveCorpus) -> AttentiveCaptioner:
        steps = self.config.steps + self.config.reward_steps
        return self.trained(build(self.config, data), "step", steps, "steps")

    @override
    def cnn(self, data: AttentiveCorpus) -> fx.GraphModule:
        network: fx.GraphModule = data.encoders.cnn.half().float().eval()
        return network

    @override
    def graphs(self, data: AttentiveCorpus, model: AttentiveCaptioner) -> dict[str, bytes | Path]:
        pooled, photos = data.splits["train"].pooled[:, 0], data.splits["train"].photos
        some = collections.contents(photos[:: max(len(photos) // CALIBRATED, 1)])
        seen = (photo(decoded(each.content, name=each.name, least=DETECTOR_SIZE), ENCODER_SIZE) for each in some)
        return {**export_attentive(model, self.cnn(data), data.encoders.detector_file.read_bytes(), pooled, seen)}

    @override
    def photos(self, data: AttentiveCorpus, split: str) -> Sequence[Photo]:
        return data.splits[split].photos

    @override
    def logits(
        self,
        predictor: CaptionsPredictor,
        data: AttentiveCorpus,
        model: AttentiveCaptioner,
        image: Content,
        tokens: Tensor,
    ) -> Tensor:
        decoder = predictor.decoder
        assert isinstance(decoder, AttentiveDecoder)
        whole = decoded(image.content, name=image.name, least=DETECTOR_SIZE)
        tags = torch.from_numpy(tag_slots(decoder.detected(whole))[None])
        grid, pooled = self.cnn(data)(torch.from_numpy(encoder_input(photo(whole, ENCODER_SIZE)[None])))
        logits: Tensor = model(Scene(tags, grid.flatten(2).transpose(1, 2), pooled), tokens)
        return logits

    @override
    def differences(
        self, predictors: Mapping[Precision, CaptionsPredictor], data: AttentiveCorpus, model: AttentiveCaptioner
    ) -> dict[str, float]:
        """Compare int8's grids and objects with float32's too, on as many validation photographs as the modules'."""
        cosines, objects = list[float](), list[tuple[list[Detection], list[Detection]]]()
        for each in collections.contents(self.photos(data, "val")[: self.parity]):
            whole = decoded(each.content, name=each.name, least=DETECTOR_SIZE)
            pixels = photo(whole, ENCODER_SIZE)
            eyes = [cast("AttentiveDecoder", predictors[precision].decoder) for precision in ("fp32", "int8")]
            exact, rounded = (eye.encoded(pixels)[0][0] for eye in eyes)  # (81, 352)
            lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
            cosines.append(float(((exact * rounded).sum(1) / lengths).mean()))
            expected, found = (eye.detected(whole) for eye in eyes)
            objects.append((expected, found))
        shared = {"int8_cosine": float(np.mean(cosines)), "int8_objects": found_again(objects)}
        return super().differences(predictors, data, model) | shared

    @override
    def scores(self, data: AttentiveCorpus, split: str, answers: Sequence[Description]) -> dict[str, float]:
        """Return scores and measures of a split: of each collection in it, and the mean of their scores."""
        prefix, held = PREFIXES[split], data.splits[split]
        found: dict[str, float] = {}
        scores = list[dict[str, float]]()
        for index, source in enumerate(data.sources):
            members = [number for number, owner in enumerate(held.collections) if owner == index]
            if members:
                photos, given = [held.photos[each] for each in members], [answers[each] for each in members]
                measured = measures(given, [photo.captions for photo in photos])
                scored = standard_scores(photos, given, prefix)
                scored |= {f"{prefix}_{name}": value for name, value in measured.items()}
                scores.append(scored)
                found |= {f"{name}_{source.name}": value for name, value in scored.items()}
        shared = set.intersection(*(set(each) for each in scores))
        return found | {name: float(np.mean([each[name] for each in scores])) for name in sorted(shared)}

    @override
    def doubts(
        self, predictor: CaptionsPredictor, data: AttentiveCorpus, answers: Sequence[Description]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Measure validation without tags, without gender and looks; fit and measure the confidence.

        With the photographs go images unlike them, FITTED to fit and FRESH to measure.
        """
        photos, beam = self.photos(data, "val"), self.config.beam_width
        looked = collections.contents(photos[:: max(len(photos) // LOOKED, 1)])
        looks = measure_looks(predictor, looked, data.vocabulary, beam)
        untagged = self.scores(data, "val", self.caption(predictor, photos, tags=False))
        is_right, signs = right(answers, [photo.captions for photo in photos]), _signs(answers)
        fitted, fresh = (
            _signs(caption_images(predictor, (Content("drawn", each) for each in unlike(count, seed)), beam))
            for seed, count in enumerate((FITTED, FRESH))
        )
        calibration, measured = fit(signs, is_right, fitted), measure(signs, is_right, fitted, fresh)
        further = {f"untagged_{name}": value for name, value in untagged.items()}
        return further | self._neutral(predictor, data, answers) | looks | measured, calibration

    def _neutral(
        self, predictor: CaptionsPredictor, data: AttentiveCorpus, answers: Sequence[Description]
    ) -> dict[str, float]:
        """Return the gendered words of neutral validation captions, and the CIDEr they cost.

        Against references with neutral words; those of the `answers`, as they are, are compared with the own ones.
        """
        photos, found = self.photos(data, "val"), self.caption(predictor, self.photos(data, "val"), people="neutral")
        treated = [each._replace(captions=tuple(map(neutralised, each.captions))) for each in photos]
        usual, neutral = self._mean_cider(data, photos, answers), self._mean_cider(data, treated, found)
        return {"neutral_gendered": float(gendered(each.text for each in found)), "neutral_cost": usual - neutral}

    def _mean_cider(self, data: AttentiveCorpus, photos: Sequence[Photo], answers: Sequence[Description]) -> float:
        """Return the mean of the collections' CIDEr of validation."""
        owners = np.array(data.splits["val"].collections)
        members = [np.flatnonzero(owners == owner).tolist() for owner in np.unique(owners)]
        scored = [standard_scores([photos[m] for m in each], [answers[m] for m in each], "own") for each in members]
        return float(np.mean([each["own_cider"] for each in scored]))

    @override
    def card_fields(self, manifest: Manifest, data: AttentiveCorpus) -> dict[str, str]:
        metrics, config = manifest.metrics, manifest.config
        return {
            "sentences": f"{len(data.sentences):,}",
            "steps": f"{config['steps']:,}",
            "reward_steps": f"{config['reward_steps']:,}",
            "cosine": f"{metrics['int8_cosine']:.3f}",
            "objects": f"{metrics['int8_objects']:.0%}",
            "pointing": f"{metrics['pointing']:.0%}",
            "centre": f"{metrics['centre']:.0%}",
            "deletion": f"{metrics['deletion']:.2f}",
            "random": f"{metrics['random']:.2f}",
            "gendered": f"{metrics['neutral_gendered']:.0f}",
            "neutral_cost": f"{metrics['neutral_cost']:+.1f}",
            "answered": f"{metrics['answered']:.1%}",
            "rejected": f"{metrics['rejected']:.1%}",
            "error": f"{metrics['calibration_error']:.1%}",
            "table": _table(metrics, data),
        }


def _signs(answers: Sequence[Description]) -> list[Signs]:
    return [answer.signs for answer in answers if answer.signs is not None]


def _table(metrics: dict[str, float], corpus: AttentiveCorpus) -> str:
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
