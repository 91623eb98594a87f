"""Runs a recurrent language model's ONNX graphs over ragged batches.

Two graphs (made by `training.export`):

    recurrent   tokens (T, B) int64, state (B, S) -> hidden (T, B, H), state_after (B, S)
    softmax     hidden (N, H) -> log_probabilities (N, V)

A state is one flat row of S numbers whose last H are the top layer's output: what the softmax sees is a part of the
state, so a cached prefix is answered without a single recurrent step.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.bundle import Bundle
from app.errors import BundleError

Floats: TypeAlias = npt.NDArray[np.float32]
Precision: TypeAlias = Literal["int8", "fp32"]
Ids: TypeAlias = npt.NDArray[np.int64]

WEIGHTS = "weights.safetensors"
SOFTMAX_ROWS = 32  # rows of V log-probabilities made at a time: they stay in the processor's cache


class Segment(NamedTuple):
    """A stretch of one sequence to be read from a known state."""

    state: Floats  # (S,) before the first token
    tokens: Sequence[int]  # may be empty
    score: bool = False  # the log-probability of each of `tokens` is wanted
    details: int | None = None  # beside it each token's rank and this many likeliest alternatives
    distribution: bool = False  # the log-probabilities of all tokens after the last of `tokens` are wanted


class TokenReading(NamedTuple):
    """What one token of a scored segment was worth."""

    log_probability: float  # nats
    rank: int | None  # 1 is the likeliest
    alternatives: list[tuple[int, float]]  # (token, log-probability), likeliest first


class Reading(NamedTuple):
    """The outcome of one segment."""

    state: Floats  # (S,) after the last token
    scores: list[TokenReading]  # one a token, or none if not wanted
    distribution: Floats | None  # (V,) log-probabilities


def session(path: Path, threads: int) -> ort.InferenceSession:
    """Open a graph for `threads` threads that sleep, not spin, between two calls; BundleError if it can't be run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors share no base but this
        raise BundleError(f"{path}: expected a graph that ONNX Runtime can run: {error}") from error


class RecurrentEngine:
    """Reads segments of many sequences at once; a segment's outcome does not depend on what shares its batch."""

    def __init__(self, recurrent: ort.InferenceSession, softmax: ort.InferenceSession) -> None:
        """The two graphs, open; see `open`."""
        self._recurrent = recurrent
        self._softmax = softmax
        self.state_size: int = recurrent.get_inputs()[1].shape[1]
        self.vocabulary_size: int = softmax.get_outputs()[0].shape[1]
        self.hidden_size: int = softmax.get_inputs()[0].shape[1]

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, *, threads: int = 1) -> "RecurrentEngine":
        """The engine of a bundle's graphs of this precision. Raise BundleError if they can't be run.

        The graphs read WEIGHTS beside them on their own, so it must be among the bundle's verified files.
        """
        bundle.path(WEIGHTS)
        return cls(*(session(bundle.path(f"{graph}.{precision}.onnx"), threads) for graph in ("recurrent", "softmax")))

    def initial_state(self) -> Floats:
        """(S,) zeros: nothing read yet."""
        return np.zeros(self.state_size, np.float32)

    def run(self, segments: Sequence[Segment]) -> list[Reading]:
        """Read all segments; one reading each, in the same order."""
        seen, states = self._advance(segments)
        rows: list[Floats] = []  # what the softmax shall see, segment after segment
        wanted: list[tuple[int | None, int | None]] = []  # for each row (target, details); target None: all tokens
        for segment, hidden, state in zip(segments, seen, states, strict=True):
            if segment.score:
                rows.append(hidden)
                wanted += [(token, segment.details) for token in segment.tokens]
            if segment.distribution:
                rows.append(state[None, -self.hidden_size :])
                wanted.append((None, None))
        results = iter(self._softmax_rows(rows, wanted))
        return [
            Reading(
                state,
                scores=[next(results) for _ in segment.tokens] if segment.score else [],
                distribution=next(results) if segment.distribution else None,
            )
            for segment, state in zip(segments, states, strict=True)
        ]

    def _advance(self, segments: Sequence[Segment]) -> tuple[list[Floats], Floats]:
        """For each segment what the softmax sees before each of its tokens (T, H); and the states after, (B, S).

        A ragged batch is cut where a sequence ends, longest first, so that no step is spent on padding.
        """
        order = sorted(range(len(segments)), key=lambda row: -len(segments[row].tokens))
        lengths = [len(segments[row].tokens) for row in order]
        tokens = np.zeros((lengths[0], len(order)), np.int64)  # (T, B), longest first
        for place, row in enumerate(order):
            tokens[: lengths[place], place] = segments[row].tokens
        states = np.stack([segments[row].state for row in order])  # (B, S)
        hidden = np.empty((lengths[0] + 1, len(order), self.hidden_size), np.float32)  # (T + 1, B, H)
        hidden[0] = states[:, -self.hidden_size :]
        start = 0
        for end in sorted(set(lengths) - {0}):
            active = sum(length >= end for length in lengths)
            feed = {"tokens": tokens[start:end, :active], "state": states[:active]}
            hidden[start + 1 : end + 1, :active], states[:active] = self._recurrent.run(None, feed)
            start = end
        place_of = np.argsort(order)
        return [hidden[: len(s.tokens), place_of[row]] for row, s in enumerate(segments)], states[place_of]

    def _softmax_rows(self, rows: list[Floats], wanted: Sequence[tuple[int | None, int | None]]) -> Iterator[Any]:
        """For each row a TokenReading, or the whole distribution where no target is named."""
        if not rows:
            return
        hidden = np.concatenate(rows)  # (N, H)
        for start in range(0, len(hidden), SOFTMAX_ROWS):
            part = slice(start, start + SOFTMAX_ROWS)
            (log_probabilities,) = self._softmax.run(None, {"hidden": hidden[part]})  # (n, V)
            for row, (target, details) in zip(log_probabilities, wanted[part], strict=True):
                yield row.copy() if target is None else _token_reading(row, target, details)


def likeliest(log_probabilities: Floats, count: int) -> Ids:
    """Indices of the `count` largest of (V,), largest first; equals in the order of their indices."""
    count = min(count, len(log_probabilities))
    if not count:
        return np.empty(0, np.int64)
    least = np.partition(log_probabilities, -count)[-count]
    (top,) = np.nonzero(log_probabilities >= least)
    ranked: Ids = top[np.argsort(-log_probabilities[top], kind="stable")][:count]
    return ranked


def _token_reading(row: Floats, target: int, details: int | None) -> TokenReading:
    log_probability = row[target]
    if details is None:
        return TokenReading(float(log_probability), None, [])
    alternatives = [(int(token), float(row[token])) for token in likeliest(row, details)]
    return TokenReading(float(log_probability), 1 + int(np.count_nonzero(row > log_probability)), alternatives)
