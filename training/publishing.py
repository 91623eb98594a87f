"""What publishing is in every family: free names, the manifest, a draft to be measured, the probe."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app import bundle as bundles
from app.bundle import Bundle, CorpusEntry, Family, Manifest
from app.runtime.onnx_session import Precision
from app.runtime.scheduler import BundlePredictor
from training.run import Run

PRECISIONS: tuple[Precision, ...] = ("int8", "fp32")
CELL_NAMES = {  # as a model card says it: see app.models.recurrent
    "rnn": "tanh RNN",
    "lstm": "LSTM",
    "peephole": "peephole LSTM",
    "cifg": "coupled-gate LSTM",
    "gru": "GRU",
    "peephole-cifg": "peephole coupled-gate LSTM",
}


def free_names(store: Path, name: str | None, version: str | None, *, corpus: str) -> tuple[str, str]:
    """The model's and the version's name: those given, else the corpus's and today's date.

    Raise BundleError if the version exists already: ask before the minutes of measuring.
    """
    name, version = name or corpus, version or time.strftime("%Y%m%d", time.gmtime())
    bundles.require_unpublished(store, name, version)
    return name, version


def unmeasured(
    run: Run,
    family: Family,
    name: str,
    version: str,
    *,
    corpus: CorpusEntry,
    parameters: int,
    normalisation: str | None = None,
    vocabulary_sha256: str | None = None,
) -> Manifest:
    """What is known of a bundle before it is measured: no metrics yet, and int8 to serve unless they forbid it."""
    return Manifest(
        format=bundles.FORMAT,
        family=family,
        model=name,
        version=version,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commit=run.read("environment.json")["commit"],
        config=run.read("config.json"),
        normalisation=normalisation,
        vocabulary_sha256=vocabulary_sha256,
        corpus=corpus,
        metrics={},
        parameters=parameters,
        served="int8",
        files={},
    )


@contextmanager
def drafted(manifest: Manifest, contents: Mapping[str, bytes | Path]) -> Iterator[tuple[Bundle, Path]]:
    """The bundle as a draft to be measured, and a folder for its pictures; both are gone when the block ends."""
    with tempfile.TemporaryDirectory() as scratch:
        yield bundles.read(bundles.publish(Path(scratch), manifest, contents)), Path(scratch)


def probe(predictors: Mapping[Precision, BundlePredictor[Any, Any, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """The content of probe.json: `payload` and what each precision answers to it."""
    return {"payload": payload, "answers": {precision: each.probe(payload) for precision, each in predictors.items()}}
