"""The publishing procedure of all families: a finished run -> a measured bundle in a store."""

import json
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from app import bundle as bundles
from app.bundle import Bundle
from app.manifest import FORMAT, FamilyName, Manifest
from app.runtime.onnx_session import Precision
from app.runtime.predictor import BundlePredictor
from training.run import Run, RunError

PRECISIONS: tuple[Precision, ...] = ("int8", "fp32")
CELL_NAMES = {  # in model cards and reports: see app.models.recurrent
    "rnn": "tanh RNN",
    "lstm": "LSTM",
    "peephole": "peephole LSTM",
    "cifg": "coupled LSTM",
    "gru": "GRU",
    "peephole-cifg": "coupled peephole LSTM",
}

Data = TypeVar("Data")
Model = TypeVar("Model")


@dataclass(frozen=True)
class Measurements:
    """Results of measuring a draft."""

    metrics: dict[str, float]
    served: Precision
    probe: dict[str, Any]  # the content of probe.json
    plots: Mapping[str, Path] = field(default_factory=dict)  # of the model card, by file name
    tables: str = ""  # of the model card, in Markdown
    calibration: dict[str, float] | None = None  # None: the draft's


class Publisher(ABC, Generic[Data, Model]):
    """Hooks of one family for `publish_run`, which calls them in the order given here."""

    family: FamilyName

    def __init__(self, run: Run) -> None:
        self.run = run

    @abstractmethod
    def default_name(self) -> str:
        """Return the model's name if none is given."""

    @abstractmethod
    def load(self) -> Data:
        """Load the run's data; raise RunError if they changed since the training."""

    @abstractmethod
    def build(self, data: Data) -> Model:
        """Return the trained model in the bundle's precision; raise RunError if the run is not finished."""

    @abstractmethod
    def export(self, data: Data, model: Model) -> dict[str, bytes | Path]:
        """Return weights, graphs and vocabulary, by file name."""

    @abstractmethod
    def describe(self, data: Data, model: Model) -> dict[str, Any]:
        """Return the family's fields of the draft's manifest: at least `corpus` and `parameters`."""

    @abstractmethod
    def measure(self, draft: Bundle, data: Data, model: Model, scratch: Path) -> Measurements:
        """Measure the draft through the graphs that the server runs; plots are drawn into `scratch`."""

    @abstractmethod
    def card(self, manifest: Manifest, data: Data, measurements: Measurements) -> str:
        """Return the bundle's README.md."""


def publish_run(publisher: Publisher[Data, Model], store: Path, name: str | None, version: str | None) -> Path:
    """Write a finished run as a bundle into `store`, make it the current version and return the bundle's folder.

    Without a name it is the publisher's default, without a version today's date. Raise BundleError if the version
    exists already, before anything is measured.
    """
    name, version = name or publisher.default_name(), version or time.strftime("%Y%m%d", time.gmtime())
    bundles.require_unpublished(store, name, version)
    data = publisher.load()
    model = publisher.build(data)
    contents = publisher.export(data, model)
    manifest = _draft_manifest(publisher.run, publisher.family, name, version, publisher.describe(data, model))
    with tempfile.TemporaryDirectory() as scratch:
        draft = bundles.read(bundles.publish(Path(scratch), manifest, contents))
        measured = publisher.measure(draft, data, model, Path(scratch))
        results = {"metrics": measured.metrics, "served": measured.served}
        calibration = {} if measured.calibration is None else {"calibration": measured.calibration}
        manifest = manifest.model_copy(update=results | calibration)
        card = publisher.card(manifest, data, measured)
        files = {"probe.json": json.dumps(measured.probe).encode(), "README.md": card.encode()}
        return bundles.publish(store, manifest, {**contents, **measured.plots, **files})


def load_checkpoint(run: Run, key: str, expected: int, unit: str, *, each: int = 1) -> dict[str, Any]:
    """Load the run's checkpoint on the CPU.

    Raise RunError if there is none, or if its progress `key`, of which one is `each` units, is less than `expected`.
    """
    if not run.checkpoint.exists():
        raise RunError(f"{run.checkpoint}: expected a checkpoint, found none")
    checkpoint: dict[str, Any] = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
    found = checkpoint["progress"][key] * each
    if found < expected:
        raise RunError(f"{run.folder}: expected {expected} {unit}, found {found}; go on with --resume")
    return checkpoint


def probe(
    predictors: Mapping[Precision, BundlePredictor[Any, Any, Any]], payload: dict[str, Any], *further: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of probe.json: `payload` and each precision's answer to it, and further payloads likewise."""
    answers = {precision: each.probe(payload) for precision, each in predictors.items()}
    others = {"further": [probe(predictors, each) for each in further]} if further else {}
    return {"payload": payload, "answers": answers, **others}


def _draft_manifest(run: Run, family: FamilyName, name: str, version: str, fields: Mapping[str, Any]) -> Manifest:
    """The manifest before measuring: no metrics yet, and int8 to be served."""
    return Manifest(
        **{
            "format": FORMAT,
            "family": family,
            "model": name,
            "version": version,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": run.read("environment.json")["commit"],
            "config": run.read("config.json"),
            "normalisation": None,
            "vocabulary_sha256": None,
            "metrics": {},
            "served": "int8",
            "files": {},
            **fields,
        }
    )
