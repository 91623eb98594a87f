"""Runs a recurrent language model's ONNX graphs over ragged batches.

Two graphs (made by `training.export`):

    recurrent   tokens (T, B) int64, state (B, S) -> hidden (T, B, H), state_after (B, S)
    softmax     hidden (N, H), targets (N, M) int64, count (1,) int64 -> log_probabilities (N, V),
                of_targets (N, M), likeliest (N, count) int64, of_likeliest (N, count)

A state is one flat row of S numbers whose last H are the top layer's output: what the softmax sees is a part of the
state, so a cached prefix is answered without a single recurrent step.

Of V log-probabilities only those leave the softmax that are asked for; where M or the count is 0 it spends nothing on
them. A graph published before there was this choice has the input hidden and the output log_probabilities alone: then
the choice is made here.
"""

from collections.abc import Iterator, Sequence
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
SOFTMAX_ROWS = 32  # rows of V log-probabilities made at a time: they stay in the processor's cache

# What the softmax may be asked for.
WHOLE: Final = ("log_probabilities",)
TARGETS: Final = ("of_targets",)
LIKELIEST: Final = ("likeliest", "of_likeliest")


class Segment(NamedTuple):
    """A stretch of one sequence to be read from a known state."""

    state: Floats  # (S,) before the first token
    tokens: Sequence[int]  # may be empty
    score: bool = False  # the log-probability of each of `tokens` is wanted
    details: int | None = None  # beside it each token's rank and this many likeliest alternatives
    likeliest: int = 0  # so many of the likeliest tokens after the last of `tokens` are wanted
    candidates: Ids | None = None  # (M,) the log-probabilities of these, there too, are wanted

    @property
    def looks_on(self) -> bool:
        """Whether anything is wanted of what may follow."""
        return self.likeliest > 0 or self.candidates is not None


class Likeliest(NamedTuple):
    """The likeliest tokens of one place, largest log-probability first; equals in the order of their ids."""

    tokens: list[int]
    log_probabilities: list[float]  # nats


class Details(NamedTuple):
    """What could have stood in one token's place."""

    rank: int  # the token's; 1 is the likeliest
    alternatives: Likeliest


class Reading(NamedTuple):
    """The outcome of one segment."""

    state: Floats  # (S,) after the last token
    scores: Sequence[float]  # log-probabilities in nats, one a token, or none if not wanted
    details: Sequence[Details]  # one a token, or none if not wanted
    likeliest: Likeliest | None  # None if not wanted
    candidates: Floats | None  # (M,) log-probabilities, None if not wanted


class RecurrentEngine:
    """Reads segments of many sequences at once; a segment's outcome does not depend on what shares its batch."""

    def __init__(self, recurrent: ort.InferenceSession, softmax: ort.InferenceSession) -> None:
        """The two graphs, open; see `open`."""
        self._recurrent = recurrent
        self._softmax = _Softmax(softmax)
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
        order = sorted(range(len(segments)), key=lambda place: -len(segments[place].tokens))
        ordered = [segments[place] for place in order]
        seen, states = self._advance(ordered)
        scored = self._scores(ordered, seen) | self._details(ordered, seen)
        following = self._following(ordered, states)
        readings = {
            place: Reading(state, *scored.get(row, ((), ())), *following.get(row, (None, None)))
            for row, (place, state) in enumerate(zip(order, states, strict=True))
        }
        return [readings[place] for place in range(len(segments))]

    def _advance(self, segments: Sequence[Segment]) -> tuple[Floats, Floats]:
        """What the softmax sees before each token (T + 1, B, H), if one is scored; and the states after, (B, S).

        The longest segments come first. A ragged batch is cut where one ends, so that no step is spent on padding.
        """
        lengths = [len(segment.tokens) for segment in segments]
        steps = list(zip_longest(*(segment.tokens for segment in segments), fillvalue=0))
        tokens = np.array(steps, np.int64).reshape(len(steps), len(segments))  # (T, B)
        states = np.concatenate([segment.state for segment in segments]).reshape(len(segments), -1)  # (B, S)
        scored = any(segment.score for segment in segments)
        seen = np.empty((len(steps) + 1 if scored else 0, len(segments), self.hidden_size), np.float32)
        seen[:1] = states[:, -self.hidden_size :]
        outputs = ["hidden", "state_after"] if scored else ["state_after"]
        start = 0
        for end in sorted(set(lengths) - {0}):
            active = sum(length >= end for length in lengths)
            feed = {"tokens": tokens[start:end, :active], "state": states[:active]}
            *hidden, after = self._recurrent.run(outputs, feed)
            if hidden:
                seen[start + 1 : end + 1, :active] = hidden[0]
            if active == len(segments):  # the usual case, spared a copy
                states = after
            else:
                states[:active] = after
            start = end
        return seen, states

    def _scores(self, segments: Sequence[Segment], seen: Floats) -> dict[int, "_Scored"]:
        """By row the log-probabilities of the tokens of which no more than that is wanted."""
        rows = [row for row, segment in enumerate(segments) if segment.score and segment.details is None]
        if not rows:
            return {}
        hidden, targets = _read(segments, seen, rows)
        values = iter(self._softmax.of_targets(hidden, targets))
        return {row: (list(islice(values, len(segments[row].tokens))), ()) for row in rows}

    def _details(self, segments: Sequence[Segment], seen: Floats) -> dict[int, "_Scored"]:
        """By row the log-probabilities and the details of the tokens of which both are wanted."""
        wanted = {row: s.details for row, s in enumerate(segments) if s.score and s.details is not None}
        if not wanted:
            return {}
        hidden, targets = _read(segments, seen, list(wanted))
        found = self._softmax.details(hidden, targets, max(wanted.values()))
        scored: dict[int, _Scored] = {}
        for row, count in wanted.items():
            part = list(islice(found, len(segments[row].tokens)))
            details = [Details(rank, Likeliest(ids[:count], values[:count])) for _, rank, ids, values in part]
            scored[row] = ([log_probability for log_probability, *_ in part], details)
        return scored

    def _following(self, segments: Sequence[Segment], states: Floats) -> dict[int, "_Following"]:
        """By row what may follow, of those who want to know."""
        rows = [row for row, segment in enumerate(segments) if segment.looks_on]
        if not rows:
            return {}
        asked = [segments[row] for row in rows]
        hidden = states[rows, -self.hidden_size :]
        count = max(segment.likeliest for segment in asked)
        found = self._softmax.following(hidden, _padded([segment.candidates for segment in asked]), count)
        return {
            row: (
                Likeliest(ids[: segment.likeliest], values[: segment.likeliest]) if segment.likeliest else None,
                None if segment.candidates is None else told[: len(segment.candidates)],
            )
            for row, segment, (told, ids, values) in zip(rows, asked, found, strict=True)
        }


_Scored: TypeAlias = tuple[Sequence[float], Sequence[Details]]
_Following: TypeAlias = tuple[Likeliest | None, Floats | None]


class _Softmax:
    """The softmax graph, SOFTMAX_ROWS at a time: hidden (N, H) -> what is asked of N places."""

    def __init__(self, graph: ort.InferenceSession) -> None:
        self._graph = graph
        self._whole_only = len(graph.get_outputs()) == 1
        self._vocabulary_size: int = graph.get_outputs()[0].shape[1]

    def of_targets(self, hidden: Floats, targets: Ids) -> list[float]:
        """The log-probabilities of targets (N, 1)."""
        found: list[float] = []
        for (values,) in self._run(TARGETS, hidden, targets):
            found += values[:, 0].tolist()
        return found

    def details(self, hidden: Floats, targets: Ids, count: int) -> Iterator[tuple[float, int, list[int], list[float]]]:
        """Of each of targets (N, 1) the log-probability and the rank, and the `count` likeliest tokens with theirs."""
        for whole, values, ids, largest in self._run((*WHOLE, *TARGETS, *LIKELIEST), hidden, targets, count):
            ranks = [1 + int(np.count_nonzero(larger)) for larger in whole > values]  # with an axis it is slow
            yield from zip(values[:, 0].tolist(), ranks, ids.tolist(), largest.tolist(), strict=True)

    def following(self, hidden: Floats, targets: Ids, count: int) -> Iterator[tuple[Floats, list[int], list[float]]]:
        """The log-probabilities of each of targets (N, M), then the `count` likeliest tokens and theirs."""
        for values, ids, largest in self._run((*TARGETS, *LIKELIEST), hidden, targets, count):
            yield from zip(values, ids.tolist(), largest.tolist(), strict=True)

    def _run(self, outputs: Sequence[str], hidden: Floats, targets: Ids, count: int = 0) -> Iterator[list[Any]]:
        """The named outputs, so many rows of them at a time."""
        count = min(count, self._vocabulary_size)
        answer = self._chosen_here if self._whole_only else self._chosen_there
        for start in range(0, len(hidden), SOFTMAX_ROWS):
            part = slice(start, start + SOFTMAX_ROWS)
            yield answer(outputs, hidden[part], targets[part], count)

    def _chosen_there(self, outputs: Sequence[str], hidden: Floats, targets: Ids, count: int) -> list[Any]:
        feed = {"hidden": hidden, "targets": targets, "count": np.array([count])}
        found: list[Any] = self._graph.run(outputs, feed)
        return found

    def _chosen_here(self, outputs: Sequence[str], hidden: Floats, targets: Ids, count: int) -> list[Any]:
        (whole,) = self._graph.run(None, {"hidden": hidden})
        ids = np.array([likeliest(row, count) for row in whole])  # (n, count)
        of = partial(np.take_along_axis, whole, axis=1)
        found = dict(zip((*WHOLE, *TARGETS, *LIKELIEST), (whole, of(targets), ids, of(ids)), strict=True))
        return [found[name] for name in outputs]


def likeliest(log_probabilities: Floats, count: int) -> Ids:
    """Indices of the `count` largest of (V,), largest first; equals in the order of their indices."""
    count = min(count, len(log_probabilities))
    if not count:
        return np.empty(0, np.int64)
    least = np.partition(log_probabilities, -count)[-count]
    (top,) = np.nonzero(log_probabilities >= least)
    ranked: Ids = top[np.argsort(-log_probabilities[top], kind="stable")][:count]
    return ranked


def _padded(candidates: Sequence[Ids | None]) -> Ids:
    """(N, M) rows of at most M candidates, filled up with the first token of all."""
    rows = np.zeros((len(candidates), max(0 if some is None else len(some) for some in candidates)), np.int64)
    for row, some in zip(rows, candidates, strict=True):
        if some is not None:
            row[: len(some)] = some
    return rows


def _read(segments: Sequence[Segment], seen: Floats, rows: Sequence[int]) -> tuple[Floats, Ids]:
    """What the softmax sees before each token of these rows (N, H), row after row, and the tokens (N, 1)."""
    hidden = np.concatenate([seen[: len(segments[row].tokens), row] for row in rows])
    targets = np.array([token for row in rows for token in segments[row].tokens], np.int64)
    return hidden, targets[:, None]
