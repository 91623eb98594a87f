"""Publishing of a digit reader: a run -> a calibrated and measured bundle."""

import base64
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from app.bundle import Bundle
from app.images import framed_array, png
from app.manifest import CorpusEntry, Manifest
from app.models.digits import ReNet, RowReader
from app.models.language_model import parameter_count
from app.runtime.families.digits import DIGITS, Calibration, Classification, DigitsPredictor, confidences
from app.runtime.onnx_session import Precision, session
from app.runtime.predictor import answer_all
from app.runtime.recurrent_engine import Floats
from training import plots
from training.digits import data as mnist
from training.digits import robustness
from training.digits.data import DigitCorpus, Digits
from training.digits.export import export_digits
from training.digits.negatives import RawImage, photographs_in
from training.digits.recipe import NO_DIGIT, DigitsConfig, as_input, build
from training.digits.robustness import Robustness, framed_image
from training.publishing import CELL_NAMES, PRECISIONS, Measurements, Publisher, load_checkpoint, probe, publish_run
from training.run import Run

INT8_MAY_COST = 0.0005  # of the validation accuracy
REJECTED_AT_MOST = 0.001  # of plain validation digits
PARITY = 2_000  # validation images
BATCH = 250
TITLE = "digits"
FORMER_NAMES = {"rewritten": "p_elastic", "soiled": "p_degraded", "printed": "p_printed"}  # in a published bundle


def publish(
    run: Run, store: Path, *, name: str | None = None, version: str | None = None, photographs: Path | None = None
) -> Path:
    """Publish `run` as `publish_run` does.

    Temperature and rejection threshold are chosen on the validation part. The test part, plain, corrupted and deformed,
    is read once, through the framing and the graph that the server runs. `photographs`, a folder or a tar, are
    negatives. int8 is served if it costs at most INT8_MAY_COST of the validation accuracy.
    """
    return publish_run(DigitsPublisher(run, photographs), store, name, version)


class DigitsPublisher(Publisher[DigitCorpus, RowReader | ReNet]):
    """Publishing hooks of digit readers."""

    family = "digits"

    def __init__(self, run: Run, photographs: Path | None) -> None:
        super().__init__(run)
        self.config = read_config(run.read("config.json"))
        self.negatives = photographs_in(photographs) if photographs else ()

    @override
    def default_name(self) -> str:
        return TITLE

    @override
    def load(self) -> DigitCorpus:
        folder = self.run.read("source.json")["folder"]
        return mnist.load(Path(folder) if folder else None)

    @override
    def build(self, data: DigitCorpus) -> RowReader | ReNet:
        return trained(self.run, self.config)

    @override
    def export(self, data: DigitCorpus, model: RowReader | ReNet) -> dict[str, bytes | Path]:
        return {**export_digits(model)}

    @override
    def describe(self, data: DigitCorpus, model: RowReader | ReNet) -> dict[str, Any]:
        source = self.run.read("source.json")
        return {
            "corpus": CorpusEntry(name=source["name"], terms=source["terms"], sha256=source["sha256"]),
            "parameters": parameter_count(model),
            "calibration": {"temperature": 1.0, "rejection_threshold": 1.0},
        }

    @override
    def measure(self, draft: Bundle, data: DigitCorpus, model: RowReader | ReNet, scratch: Path) -> Measurements:
        metrics = parity(model, draft, data.valid)
        served: Precision = "int8" if metrics["int8_cost"] <= INT8_MAY_COST else "fp32"
        calibration = calibrated(open_predictor(draft, served), data.valid)
        predictors = {p: open_predictor(draft, p, calibration) for p in PRECISIONS}
        answers = classify(predictors[served], data.test)
        robust = benchmark(predictors[served], data.test, self.negatives)
        digit, cross = ({"image": base64.b64encode(png(each)).decode()} for each in (drawn_digit(), drawn_cross()))
        return Measurements(
            metrics=metrics | robustness_metrics(robust) | {"valid_accuracy": metrics[f"valid_accuracy_{served}"]},
            served=served,
            probe=probe(predictors, digit, cross),
            plots=card_plots(self.run, data.test, answers, scratch),
            tables=robustness.table(robust),
            calibration=asdict(calibration),
        )

    @override
    def card(self, manifest: Manifest, data: DigitCorpus, measurements: Measurements) -> str:
        fine_tuned = self.run.read("source.json").get("fine_tuned", False)
        return model_card(manifest, self.config, measurements.tables, fine_tuned=fine_tuned)


def read_config(stored: Mapping[str, Any]) -> DigitsConfig:
    """Return the configuration stored in a run or a manifest."""
    values: dict[str, Any] = {
        FORMER_NAMES.get(name, name): tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
    }
    return DigitsConfig(**values)


def trained(run: Run, config: DigitsConfig) -> RowReader | ReNet:
    """Return the run's model with its averaged weights; raise RunError if the run is not finished."""
    checkpoint = load_checkpoint(run, "step", config.samples, "samples seen", each=config.batch_size)
    model = build(config)
    model.load_state_dict(
        {
            key.removeprefix("module."): value
            for key, value in checkpoint["averaged"].items()
            if key.startswith("module.")
        }
    )
    return model.eval()


def open_predictor(draft: Bundle, precision: Precision, calibration: Calibration | None = None) -> DigitsPredictor:
    """Open the draft's predictor with `calibration`, by default without effect."""
    reader = session(draft.path(f"reader.{precision}.onnx"), 1)
    return DigitsPredictor(reader, calibration or Calibration(1.0, 1.0), precision=precision)


@torch.inference_mode()
def parity(model: RowReader | ReNet, draft: Bundle, valid: Digits) -> dict[str, float]:
    """Largest differences of probabilities over PARITY validation images, validation accuracies, and the cost of int8.

    The int8 graph is compared with the module emulating int8 (`torch_difference`) and with the module in float32
    (`int8_difference`), the fp32 graph with the module in float32 (`torch_difference_fp32`).
    """
    some = Digits(valid.images[:PARITY], valid.labels[:PARITY])
    plain, found = _module_probabilities(model, some), dict[str, float]()
    model.eight_bit = True
    eight_bit = _module_probabilities(model, some)
    model.eight_bit = False
    graphs = {p: open_predictor(draft, p) for p in PRECISIONS}
    of_graph = {p: _softmax(_logits(graph, some)) for p, graph in graphs.items()}
    found["torch_difference"] = _largest(of_graph["int8"], eight_bit)
    found["torch_difference_fp32"] = _largest(of_graph["fp32"], plain)
    found["int8_difference"] = _largest(of_graph["int8"], plain)
    for precision, graph in graphs.items():
        right = _logits(graph, valid)[:, :DIGITS].argmax(1) == valid.labels.numpy()
        found[f"valid_accuracy_{precision}"] = float(right.mean())
    found["int8_cost"] = found["valid_accuracy_fp32"] - found["valid_accuracy_int8"]
    return found


def calibrated(predictor: DigitsPredictor, valid: Digits) -> Calibration:
    """Fit the temperature on validation digits; choose the strictest threshold that rejects REJECTED_AT_MOST."""
    logits = torch.from_numpy(_logits(predictor, valid)[:, :DIGITS].copy())
    fitted = Calibration(_temperature(logits, valid.labels), 1.0)
    doubts = 1 - confidences(predictor.recalibrated(fitted).probabilities(valid.images.numpy()))
    return replace(fitted, rejection_threshold=float(np.quantile(doubts, 1 - REJECTED_AT_MOST, method="higher")))


def classify(predictor: DigitsPredictor, digits: Digits) -> list[Classification]:
    """Classify images framed as in the server."""
    framed = [framed_array(image) for image in digits.images.numpy()]
    batches = (framed[start : start + BATCH] for start in range(0, len(framed), BATCH))
    return [answer for batch in batches for answer in answer_all(predictor, batch)]


def benchmark(
    predictor: DigitsPredictor, digits: Digits, photographs: Sequence[bytes], limit: int | None = None
) -> Robustness:
    """Measure `predictor` on corrupted MNIST and non-digits, framed as in the server; see `robustness`."""

    def classify_all(images: list[RawImage]) -> list[Classification]:
        return answer_all(predictor, [framed_image(image) for image in images])

    return robustness.measure(classify_all, digits.images.numpy(), digits.labels.numpy(), photographs, limit=limit)


def robustness_metrics(found: Robustness) -> dict[str, float]:
    """The manifest's metrics from a robustness benchmark."""
    return {
        "test_accuracy": found.accuracy,
        "test_wrongly_rejected": found.wrongly_rejected,
        "test_calibration_error": found.calibration_error,
        "corrupted_accuracy": found.corrupted_accuracy,
        "variant_accuracy": found.variant_accuracy,
        "least_variant_accuracy": min(found.variants.values()),
        "negatives_rejected": found.negatives_rejected,
    }


def card_plots(run: Run, test: Digits, answers: Sequence[Classification], folder: Path) -> dict[str, Path]:
    """Draw the plots of the model card into `folder`; return their paths by file name."""
    names = ("curves.png", "confusion.png", "errors.png", "reliability.png")
    curves, confusion, errors, reliability = (folder / name for name in names)
    labels = test.labels.tolist()
    metrics = run.metrics()
    parts = [name.removesuffix("_accuracy") for name in metrics[-1] if name.endswith("_accuracy")]
    plots.learning_curve(metrics, curves, TITLE, metric="accuracy", parts=parts, logarithmic=False)
    given = [NO_DIGIT if answer.digit is None else answer.digit for answer in answers]
    plots.confusion_matrix(labels, given, [*map(str, range(DIGITS)), "none"], confusion)
    wrong = [index for index, (label, digit) in enumerate(zip(labels, given, strict=True)) if label != digit]
    plots.contact_sheet(
        [test.images[index].numpy() for index in wrong],
        [f"{labels[index]} read {'none' if given[index] == NO_DIGIT else given[index]}" for index in wrong],
        errors,
    )
    likeliest = [int(np.argmax(answer.probabilities)) for answer in answers]
    right = [label == digit for label, digit in zip(labels, likeliest, strict=True)]
    plots.reliability_diagram([answer.confidence for answer in answers], right, reliability)
    return {name: folder / name for name in names}


def model_card(manifest: Manifest, config: DigitsConfig, table: str, *, fine_tuned: bool) -> str:
    """Return the bundle's README.md: training data and terms, metrics, limitations."""
    template = string.Template(resources.files("training.digits").joinpath("card.md").read_text())
    metrics = manifest.metrics
    sweeps = ", ".join(
        f"{h} units on patches of {p} x {p}" for p, h in zip(config.patches, config.hidden_sizes, strict=True)
    )
    cell = CELL_NAMES[config.cell]
    reader = f"a ReNet of bidirectional {cell}s ({sweeps})"
    return template.substitute(
        model=manifest.model,
        version=manifest.version,
        reader=reader
        if config.reader == "renet"
        else f"one bidirectional {cell} of {config.hidden_sizes[0]} units, row by row",
        parameters=f"{manifest.parameters:,}",
        samples=f"{config.samples:,}",
        start=", beyond those of the weights that it started from" if fine_tuned else "",
        terms=manifest.corpus.terms,
        table=table,
        served=manifest.served,
        temperature=f"{manifest.calibration['temperature']:.3f}",
        threshold=f"{manifest.calibration['rejection_threshold']:.3f}",
        valid=f"{metrics['valid_accuracy']:.2%}",
        cost=f"{metrics['int8_cost']:+.2%}",
        **{key: f"{metrics[key]:.1e}" for key in ("torch_difference", "torch_difference_fp32", "int8_difference")},
    )


def drawn_digit() -> npt.NDArray[np.uint8]:
    """A seven of two strokes, as the probe's image."""
    canvas = np.zeros((28, 28), np.uint8)
    canvas[6:9, 8:20] = 255
    for row in range(8, 23):
        column = 18 - (row - 8) // 2
        canvas[row, column - 1 : column + 2] = 255
    return canvas


def drawn_cross() -> npt.NDArray[np.uint8]:
    """A cross, as the probe's image without a digit."""
    canvas = np.zeros((28, 28), np.uint8)
    for row in range(4, 24):
        canvas[row, row - 1 : row + 2] = canvas[row, 26 - row : 29 - row] = 255
    return canvas


def _temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the least negative log-likelihood (Guo et al. 2017, arXiv 1706.04599)."""
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        cost = F.cross_entropy(logits.double() / log_temperature.exp(), labels)
        cost.backward()  # type: ignore[no-untyped-call]
        return cost

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().exp())


def _module_probabilities(model: RowReader | ReNet, digits: Digits) -> Floats:
    parts = [model(as_input(digits.images[start : start + BATCH])) for start in range(0, len(digits), BATCH)]
    return _softmax(torch.cat(parts).numpy())


def _logits(predictor: DigitsPredictor, digits: Digits) -> Floats:
    starts = range(0, len(digits), BATCH)
    return np.concatenate([predictor.logits(digits.images[start : start + BATCH].numpy()) for start in starts])


def _softmax(logits: Floats) -> Floats:
    """Logits (N, outputs) -> probabilities of the ten digits (N, 10)."""
    return torch.from_numpy(logits[:, :DIGITS]).softmax(1).numpy()


def _largest(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max())
