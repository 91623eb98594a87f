"""Publishing of a number reader: a run -> a measured bundle."""

import base64
import io
import string
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from typing_extensions import override

from app.bundle import Bundle
from app.images import number_strip
from app.manifest import CorpusEntry, Manifest
from app.models.language_model import parameter_count
from app.models.numbers import NumberReader
from app.runtime.families.numbers import Number, NumbersPredictor, doubt
from app.runtime.onnx_session import Precision, session
from training import plots
from training.digits import data as mnist
from training.digits.data import DigitCorpus, Digits
from training.digits.number_export import export_numbers
from training.digits.number_recipe import NumbersConfig, build
from training.digits.numbers import MAX_DIGITS, number_image
from training.publishing import CELL_NAMES, PRECISIONS, Measurements, Publisher, load_checkpoint, probe, publish_run
from training.run import Run

INT8_MAY_COST: Final = 0.002  # of the share of numbers read without a fault
REJECTED_AT_MOST: Final = 0.01  # of validation numbers
IMAGES: Final = 50  # of each length
FIVES: Final = 400  # numbers of five digits, apart and touching
SEED: Final = 2_026


def publish(run: Run, store: Path, *, name: str | None = None, version: str | None = None) -> Path:
    """Publish `run` as `publish_run` does; images of test digits are found and read as in the server."""
    return publish_run(NumbersPublisher(run), store, name, version)


class NumbersPublisher(Publisher[DigitCorpus, NumberReader]):
    """Publishing hooks of number readers."""

    family = "numbers"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        stored: dict[str, Any] = run.read("config.json")
        self.config = NumbersConfig(**stored | {"hidden_sizes": tuple(stored["hidden_sizes"])})

    @override
    def default_name(self) -> str:
        return "numbers"

    @override
    def load(self) -> DigitCorpus:
        folder = self.run.read("source.json")["folder"]
        return mnist.load(Path(folder) if folder else None)

    @override
    def build(self, data: DigitCorpus) -> NumberReader:
        samples, batch_size = self.config.samples, self.config.batch_size
        checkpoint = load_checkpoint(self.run, "step", samples, "strings seen", each=batch_size)
        model, prefix = build(self.config), "module."
        weights = {k.removeprefix(prefix): v for k, v in checkpoint["averaged"].items() if k.startswith(prefix)}
        model.load_state_dict(weights)
        return model.eval()

    @override
    def export(self, data: DigitCorpus, model: NumberReader) -> dict[str, bytes | Path]:
        return {**export_numbers(model)}

    @override
    def describe(self, data: DigitCorpus, model: NumberReader) -> dict[str, Any]:
        source = self.run.read("source.json")
        return {
            "corpus": CorpusEntry(name=source["name"], terms=source["terms"], sha256=source["sha256"]),
            "parameters": parameter_count(model),
            "calibration": {"rejection_threshold": 1.0},
        }

    @override
    def measure(self, draft: Bundle, data: DigitCorpus, model: NumberReader, scratch: Path) -> Measurements:
        readers = {p: open_predictor(draft, p, 1.0) for p in PRECISIONS}
        valid = {p: read_all(reader, data.valid, None) for p, reader in readers.items()}
        cost = exact(valid["fp32"]) - exact(valid["int8"])
        served: Precision = "int8" if cost <= INT8_MAY_COST else "fp32"
        doubts = [doubt(found.confidence, len(found.digits)) for found, _ in valid[served] if found.digits]
        threshold = float(np.quantile(doubts, 1 - REJECTED_AT_MOST, method="higher"))
        readers = {p: open_predictor(draft, p, threshold) for p in PRECISIONS}
        test = read_all(readers[served], data.test, None)
        metrics = {
            "torch_difference_fp32": _difference(model, readers["fp32"], data.valid),
            "int8_cost": cost,
            "valid_accuracy": exact(valid[served]),
            "test_accuracy": exact(test),
            "test_digit_accuracy": digits_right(test),
            "test_accuracy_5": exact(read_all(readers[served], data.test, 5, touching=False)),
            "test_accuracy_5_touching": exact(read_all(readers[served], data.test, 5, touching=True)),
            "test_wrongly_rejected": float(np.mean([found.number is None for found, _ in test])),
        }
        image, _ = number_image(data.valid, 5, np.random.default_rng(SEED), touching=False)
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        plots.learning_curve(self.run.metrics(), scratch / "curves.png", "numbers", metric="accuracy", parts=["valid"])
        return Measurements(
            metrics=metrics,
            served=served,
            probe=probe(readers, {"image": base64.b64encode(stream.getvalue()).decode()}),
            plots={"curves.png": scratch / "curves.png"},
            calibration={"rejection_threshold": threshold},
        )

    @override
    def card(self, manifest: Manifest, data: DigitCorpus, measurements: Measurements) -> str:
        template = string.Template(resources.files("training.digits").joinpath("number_card.md").read_text())
        return template.substitute(
            model=manifest.model,
            version=manifest.version,
            layers=f"{len(self.config.hidden_sizes)} bidirectional {CELL_NAMES[self.config.cell]} layers",
            parameters=f"{manifest.parameters:,}",
            samples=f"{self.config.samples:,}",
            terms=manifest.corpus.terms,
            threshold=f"{manifest.calibration['rejection_threshold']:.3f}",
            **{name: f"{100 * value:.2f}" for name, value in manifest.metrics.items()},
        )


def open_predictor(draft: Bundle, precision: Precision, threshold: float) -> NumbersPredictor:
    """Open the draft's predictor with a threshold."""
    return NumbersPredictor(session(draft.path(f"reader.{precision}.onnx"), 1), threshold, precision=precision)


def read_all(
    reader: NumbersPredictor, digits: Digits, length: int | None, *, touching: bool | None = None
) -> list[tuple[Number, str]]:
    """Read images of numbers of `length`, or of each length, composed from a fixed seed; return each with its truth."""
    rng = np.random.default_rng([SEED, length or 0, touching is True])
    lengths = [length] * FIVES if length else [each for each in range(1, MAX_DIGITS + 1) for _ in range(IMAGES)]
    made = [number_image(digits, each, rng, touching=touching) for each in lengths]
    return [(reader.read(number_strip(Image.fromarray(image))), "".join(map(str, truth))) for image, truth in made]


def exact(found: list[tuple[Number, str]]) -> float:
    """Return the share of numbers read without a fault, of answers and truths."""
    return float(np.mean([answer.number == truth for answer, truth in found]))


def digits_right(found: list[tuple[Number, str]]) -> float:
    """Return 1 minus the edit distance of all numbers to the truth, a share of the truth's digits."""
    faults = sum(_edits(answer.number or "", truth) for answer, truth in found)
    return 1 - faults / sum(len(truth) for _, truth in found)


def _edits(one: str, other: str) -> int:
    """The Levenshtein distance."""
    row = list(range(len(other) + 1))
    for index, character in enumerate(one, 1):
        before, row[0] = row[0], index
        for column, wanted in enumerate(other, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (character != wanted))
    return row[-1]


@torch.inference_mode()
def _difference(model: NumberReader, reader: NumbersPredictor, valid: Digits) -> float:
    """The largest difference of a logit between the module and the graph, over some strips."""
    rng = np.random.default_rng(SEED)
    found = [number_strip(Image.fromarray(number_image(valid, length, rng)[0])) for length in range(1, MAX_DIGITS + 1)]
    inputs = [torch.from_numpy(strip.pixels)[None].float() / 255 for strip in found]
    outputs = [model(each)[:, 0].numpy() for each in inputs]
    differences = [np.abs(output - reader.logits(strip)).max() for output, strip in zip(outputs, found, strict=True)]
    return float(max(differences))
