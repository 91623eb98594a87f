"""Serving latency of a trained language model."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from app.models.language_model import LanguageModel
from app.runtime.onnx_session import session
from app.runtime.recurrent_engine import RecurrentEngine, Segment
from training.language_model.data import Ids
from training.language_model.export import export_language_model

WARM = 50  # steps of warm-up
TIMED = 500  # steps


def step_milliseconds(model: LanguageModel, ids: Ids) -> float:
    """Return the median time of one step of one row with all log-probabilities: int8 graphs on one thread."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in export_language_model(model).items():
            (Path(scratch) / name).write_bytes(content)
        engine = RecurrentEngine(
            *(session(Path(scratch) / f"{part}.int8.onnx", 1) for part in ("recurrent", "softmax"))
        )
        everything = np.arange(engine.vocabulary_size)
        state, taken = engine.initial_state(), []
        for step in range(WARM + TIMED):
            started = time.perf_counter()
            (reading,) = engine.run([Segment(state, [int(ids[step % len(ids)])], candidates=everything)])
            taken.append(time.perf_counter() - started)
            state = reading.state
    return 1000 * statistics.median(taken[WARM:])
