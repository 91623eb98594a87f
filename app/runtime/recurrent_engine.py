"""Execution of a recurrent language model's ONNX graphs over ragged batches.

Two graphs (made by `training.language_model.export`):

    recurrent   tokens (T, B) int64, state (B, S) -> hidden (T, B, H), state_after (B, S)
    softmax     hidden (N, H), targets (N, M) int64, count (1,) int64 -> log_probabilities (N, V),
                of_targets (N, M), likeliest (N, count) int64, of_likeliest (N, count)

A state is one flat row of S numbers whose last H are the top layer's output, the input of the softmax. A cached prefix
is therefore answered without a single recurrent step.

The softmax graph returns only the requested log-probabilities of V; for M or a count of 0 it computes none. Graphs of
older bundles have the input hidden and the output log_probabilities alone: the selection is then made here.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, zip_longest
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.bundle import Bundle
from app.runtime.onnx_session import Precision, session
from app.text import Ids

Floats: TypeAlias = npt.NDArray[np.float32]

WEIGHTS = "weights.safetensors"
FEW = 256  # values that are sorted faster whole than by their largest
SOFTMAX_ROWS = 64  # rows of V log-probabilities at a time: of more the cache holds too little, fewer share the weights

# Outputs of the softmax graph.
WHOLE: Final = ("log_probabilities",)
TARGETS: Final = ("of_targets",)
LIKELIEST: Final = ("likeliest", "of_likeliest")
PACE_DECAY: Final = 0.99  # of the weight of earlier steps, at each step


class Segment(NamedTuple):
    """A part of one sequence to read from a known state."""

    state: Floats  # (S,) before the first token
    tokens: Sequence[int]  # may be empty
    score: bool = False  # return the log-probability of each of `tokens`
    details: int | None = None  # with `score`: return each token's rank and this many likeliest alternatives too
    likeliest: int = 0  # return this many of the likeliest next tokens
    candidates: Ids | None = None  # (M,) return the log-probabilities of these next tokens

    @property
    def predicts(self) -> bool:
        """True if next tokens are requested."""
        return self.likeliest > 0 or self.candidates is not None


class Likeliest(NamedTuple):
    """The likeliest tokens at one position, largest log-probability first, ties by id."""

    tokens: list[int]
    log_probabilities: list[float]  # nats


class Details(NamedTuple):
    """A token's rank at its position, and the likeliest alternatives."""

    rank: int  # 1 is the likeliest
    alternatives: Likeliest


class Reading(NamedTuple):
    """The outcome of one segment. Its arrays are its own: a view would keep the whole batch in memory."""

    state: Floats  # (S,) after the last token
    scores: Sequence[float]  # log-probabilities in nats, one per token, or empty if not requested
    details: Sequence[Details]  # one per token, or empty if not requested
    likeliest: Likeliest | None  # None if not requested
    candidates: Floats | None  # (M,) log-probabilities, None if not requested


class Pace:
    """Slowness of a model here: measured seconds over expected ones, an average over the latest steps.

    Steps are bounded by time: a larger model, or a busy machine, gets smaller ones.
    """

    def __init__(self, expected_s: float, weight: float) -> None:
        """`expected_s`: seconds a unit of cost; `weight`: units that the expectation counts for at first."""
        self._expected_s = expected_s
        self._units = weight
        self._seconds = weight * expected_s

    def observe(self, units: int, seconds: float) -> None:
        """Count a step of `units` that took `seconds`."""
        self._units = PACE_DECAY * self._units + units
        self._seconds = PACE_DECAY * self._seconds + seconds

    @property
    def slowness(self) -> float:
        """1 at the expected pace or a faster one."""
        return max(1.0, self._seconds / (self._units * self._expected_s))


class RecurrentEngine:
    """A reader of ragged batches of segments. Batch-invariant: a segment's reading is the same in every batch."""

    def __init__(self, recurrent: ort.InferenceSession, softmax: ort.InferenceSession) -> None:
        """The two graphs are described above; see `open`."""
        self._recurrent = recurrent
        self._softmax = _Softmax(softmax)
        self.state_size: int = recurrent.get_inputs()[1].shape[1]
        self.vocabulary_size: int = softmax.get_outputs()[0].shape[1]
        self.hidden_size: int = softmax.get_inputs()[0].shape[1]

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, *, threads: int = 1) -> "RecurrentEngine":
        """Open a bundle's graphs of this precision. Raise BundleError if they can't be run."""
        bundle.path(WEIGHTS)  # the graphs load it themselves, so it must be among the verified files
        return cls(*(session(bundle.path(f"{graph}.{precision}.onnx"), threads) for graph in ("recurrent", "softmax")))

    def initial_state(self) -> Floats:
        """Return the state (S,) before any token: zeros."""
        return np.zeros(self.state_size, np.float32)

    def run(self, segments: Sequence[Segment]) -> list[Reading]:
        """Read all segments and return their readings in the same order."""
        order = sorted(range(len(segments)), key=lambda index: -len(segments[index].tokens))
        ordered = [segments[index] for index in order]
        hidden, states = self._advance(ordered)
        own: Callable[[Floats], Floats] = np.copy if len(segments) > 1 else np.asarray
        scored = self._scores(ordered, hidden) | self._details(ordered, hidden)
        following = self._following(ordered, states)
        readings = {
            index: Reading(own(state), *scored.get(row, ((), ())), *following.get(row, (None, None)))
            for row, (index, state) in enumerate(zip(order, states, strict=True))
        }
        return [readings[index] for index in range(len(segments))]

    def _advance(self, segments: Sequence[Segment]) -> tuple[Floats, Floats]:
        """Return the hidden outputs before each token (T + 1, B, H) and the final states (B, S).

        The former are empty if no segment is scored. `segments` are sorted by descending length, and the batch is split
        where one ends, so that no step is spent on padding.
        """
        lengths = [len(segment.tokens) for segment in segments]
        steps = list(zip_longest(*(segment.tokens for segment in segments), fillvalue=0))
        tokens = np.array(steps, np.int64).reshape(len(steps), len(segments))  # (T, B)
        states = np.concatenate([segment.state for segment in segments]).reshape(len(segments), -1)  # (B, S)
        scored = any(segment.score for segment in segments)
        hidden = np.empty((len(steps) + 1 if scored else 0, len(segments), self.hidden_size), np.float32)
        hidden[:1] = states[:, -self.hidden_size :]
        outputs = ["hidden", "state_after"] if scored else ["state_after"]
        start = 0
        for end in sorted(set(lengths) - {0}):
            active = sum(length >= end for length in lengths)
            feed = {"tokens": tokens[start:end, :active], "state": states[:active]}
            *found, after = self._recurrent.run(outputs, feed)
            if found:
                hidden[start + 1 : end + 1, :active] = found[0]
            if active == len(segments):  # the usual case, without a copy
                states = after
            else:
                states[:active] = after
            start = end
        return hidden, states

    def _scores(self, segments: Sequence[Segment], hidden: Floats) -> dict[int, "_Scored"]:
        """Return by row the log-probabilities of the tokens of segments scored without details."""
        rows = [row for row, segment in enumerate(segments) if segment.score and segment.details is None]
        if not rows:
            return {}
        values = iter(self._softmax.of_targets(*_scored_rows(segments, hidden, rows)))
        return {row: (list(islice(values, len(segments[row].tokens))), ()) for row in rows}

    def _details(self, segments: Sequence[Segment], hidden: Floats) -> dict[int, "_Scored"]:
        """Return by row the log-probabilities and details of the tokens of segments scored with details."""
        counts = {row: s.details for row, s in enumerate(segments) if s.score and s.details is not None}
        if not counts:
            return {}
        found = self._softmax.details(*_scored_rows(segments, hidden, list(counts)), max(counts.values()))
        scored: dict[int, _Scored] = {}
        for row, count in counts.items():
            part = list(islice(found, len(segments[row].tokens)))
            details = [Details(rank, Likeliest(ids[:count], values[:count])) for _, rank, ids, values in part]
            scored[row] = ([log_probability for log_probability, *_ in part], details)
        return scored

    def _following(self, segments: Sequence[Segment], states: Floats) -> dict[int, "_Following"]:
        """Return by row the next tokens, for segments that request them."""
        rows = [row for row, segment in enumerate(segments) if segment.predicts]
        if not rows:
            return {}
        requested = [segments[row] for row in rows]
        hidden = states[rows, -self.hidden_size :]
        count = max(segment.likeliest for segment in requested)
        found = self._softmax.following(hidden, _padded([segment.candidates for segment in requested]), count)
        return {
            row: (
                Likeliest(ids[: segment.likeliest], values[: segment.likeliest]) if segment.likeliest else None,
                None if segment.candidates is None else candidates[: len(segment.candidates)].copy(),
            )
            for row, segment, (candidates, ids, values) in zip(rows, requested, found, strict=True)
        }


_Scored: TypeAlias = tuple[Sequence[float], Sequence[Details]]
_Following: TypeAlias = tuple[Likeliest | None, Floats | None]


class _Softmax:
    """The softmax graph, run over SOFTMAX_ROWS of hidden (N, H) at a time."""

    def __init__(self, graph: ort.InferenceSession) -> None:
        self._graph = graph
        self._whole_only = len(graph.get_outputs()) == 1
        self._vocabulary_size: int = graph.get_outputs()[0].shape[1]

    def of_targets(self, hidden: Floats, targets: Ids) -> list[float]:
        """Return the log-probabilities of targets (N, 1)."""
        found: list[float] = []
        for (values,) in self._run(TARGETS, hidden, targets):
            found += values[:, 0].tolist()
        return found

    def details(self, hidden: Floats, targets: Ids, count: int) -> Iterator[tuple[float, int, list[int], list[float]]]:
        """Yield per target (N, 1) its log-probability and rank, and the `count` likeliest tokens with theirs."""
        for whole, values, ids, largest in self._run((*WHOLE, *TARGETS, *LIKELIEST), hidden, targets, count):
            ranks = [1 + int(np.count_nonzero(larger)) for larger in whole > values]  # with an axis it is slow
            yield from zip(values[:, 0].tolist(), ranks, ids.tolist(), largest.tolist(), strict=True)

    def following(self, hidden: Floats, targets: Ids, count: int) -> Iterator[tuple[Floats, list[int], list[float]]]:
        """Yield per row the log-probabilities of targets (N, M), then the `count` likeliest tokens and theirs."""
        for values, ids, largest in self._run((*TARGETS, *LIKELIEST), hidden, targets, count):
            yield from zip(values, ids.tolist(), largest.tolist(), strict=True)

    def _run(self, outputs: Sequence[str], hidden: Floats, targets: Ids, count: int = 0) -> Iterator[list[Any]]:
        """Yield the named outputs, SOFTMAX_ROWS rows at a time."""
        count = min(count, self._vocabulary_size)
        for start in range(0, len(hidden), SOFTMAX_ROWS):
            part = slice(start, start + SOFTMAX_ROWS)
            if self._whole_only:
                yield self._select(outputs, hidden[part], targets[part], count)
            else:
                feed = {"hidden": hidden[part], "targets": targets[part], "count": np.array([count])}
                yield self._graph.run(outputs, feed)

    def _select(self, outputs: Sequence[str], hidden: Floats, targets: Ids, count: int) -> list[Any]:
        """Select the outputs from all log-probabilities, as the graphs of newer bundles do themselves."""
        (whole,) = self._graph.run(None, {"hidden": hidden})
        ids = np.array([likeliest(row, count) for row in whole])  # (n, count)
        of = partial(np.take_along_axis, whole, axis=1)
        found = dict(zip((*WHOLE, *TARGETS, *LIKELIEST), (whole, of(targets), ids, of(ids)), strict=True))
        return [found[name] for name in outputs]


def likeliest(log_probabilities: Floats, count: int) -> Ids:
    """Return the indices of the `count` largest of (V,), largest first, ties by index."""
    count = min(count, len(log_probabilities))
    if not count:
        return np.empty(0, np.int64)
    if len(log_probabilities) <= FEW:
        few: Ids = np.argsort(-log_probabilities, kind="stable")[:count]
        return few
    least = np.partition(log_probabilities, -count)[-count]
    (top,) = np.nonzero(log_probabilities >= least)
    ranked: Ids = top[np.argsort(-log_probabilities[top], kind="stable")][:count]
    return ranked


def _padded(candidates: Sequence[Ids | None]) -> Ids:
    """Return candidates as rows (N, M), padded with token 0."""
    rows = np.zeros((len(candidates), max(0 if some is None else len(some) for some in candidates)), np.int64)
    for row, some in zip(rows, candidates, strict=True):
        if some is not None:
            row[: len(some)] = some
    return rows


def _scored_rows(segments: Sequence[Segment], hidden: Floats, rows: Sequence[int]) -> tuple[Floats, Ids]:
    """Return the hidden outputs before each token of these rows, row after row (N, H), and the tokens (N, 1)."""
    before = np.concatenate([hidden[: len(segments[row].tokens), row] for row in rows])
    targets = np.array([token for row in rows for token in segments[row].tokens], np.int64)
    return before, targets[:, None]
