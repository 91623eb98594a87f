"""Search for the likeliest next words, whatever number of tokens a word has, one scheduling step at a time.

Exact: since a word is no likelier than its first tokens, the search ends when enough finished words are likelier than
every unfinished one. The generators yield the segments to read and are sent their readings, so that a caller batches
them with others.
"""

import math
from array import array
from collections.abc import Collection, Generator, Iterable, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np

from app.runtime.recurrent_engine import Floats, Reading, Segment, likeliest
from app.runtime.state_cache import Entry, StateCache
from app.runtime.writer_cache import WriterCache
from app.text import Following, Prefix

T = TypeVar("T")
Steps: TypeAlias = Generator[list[Segment], list[Reading], T]

POOL: Final = 64  # likeliest first tokens of a word that are followed up
BRANCHES: Final = 8  # likeliest tokens inside a word that are followed up, at each place
MAX_READ: Final = 24  # unfinished words read at most for each word wanted, and for each of SPARE more
SPARE: Final = 5
BATCH: Final = 2  # unfinished words read beyond those wanted in the first step, as many more in each later one
NEGLIGIBLE: Final = math.log(1e-3)  # share of a typed prefix's probability, in nats, that is not searched for
STEP_ROWS: Final = 16  # unfinished words read in one step at most, of a run's search too: 3 to 5 ms
LEAST: Final = math.log(1e-4)  # log-probability below which words of several tokens are not suggested


class Word(NamedTuple):
    """A word that was found, or a run of words."""

    tokens: tuple[int, ...]
    log_probability: float  # nats, of the word and its end
    open: float  # nats, of its tokens alone
    state: Floats  # (S,) before the tokens `unread`
    unread: tuple[int, ...]  # the last of `tokens`, perhaps none

    def followed_by(self, word: "Word") -> "Word":
        """Return the run of this word and one after it."""
        return word._replace(
            tokens=self.tokens + word.tokens,
            log_probability=self.open + word.log_probability,
            open=self.open + word.open,
        )


class Criteria(NamedTuple):
    """The words that are wanted."""

    width: int  # number of words
    never: Collection[int]  # ids of tokens that are no words to suggest
    blocked: Collection[str]  # words not to suggest, case-folded
    writer: WriterCache | None = None  # makes words that were written before likelier
    least: float = -math.inf  # log-probability that a word must exceed


def request(state: Floats, unread: Sequence[int], prefix: Prefix, criteria: Criteria) -> Segment:
    """Return the segment whose reading `next_words` takes: `unread` from `state` on, then the word's first token."""
    ids = prefix.following(()).ids
    if ids is None:
        return Segment(state, unread, likeliest=criteria.width + len(criteria.never))
    return Segment(state, unread, candidates=ids)


def next_words(
    prefix: Prefix, reading: Reading, criteria: Criteria, context: Sequence[int], cache: StateCache
) -> Steps[list[Word]]:
    """Find the likeliest words that satisfy `prefix`, likeliest first, from the reading of `request` after `context`.

    What is read of words of several tokens is kept in `cache`: the next keystroke reads little, and a word that is
    taken is read already.
    """
    following = prefix.following(())
    if following.whole:
        return _whole_words(prefix, reading, criteria, context)
    search, before = _Search(prefix, criteria, context), array("i", context)
    search.extend(
        _Node((), 0.0, 0.0, reading.state), following, Entry(reading.state, following.ids, reading.candidates)
    )
    left, size = MAX_READ * (criteria.width + SPARE), criteria.width
    while left > 0 and (nodes := search.likeliest_open(min(size := size + BATCH, left, STEP_ROWS))):
        left -= len(nodes)
        followings = [prefix.following(node.tokens) for node in nodes]
        keys = [before + array("i", node.tokens) for node in nodes]
        found = [_known(cache.get(key), following) for key, following in zip(keys, followings, strict=True)]
        unread = [at for at, known in enumerate(found) if known is None]
        if unread:
            readings = yield [
                Segment(nodes[at].state, nodes[at].tokens[-1:], candidates=followings[at].ids) for at in unread
            ]
            for at, reading in zip(unread, readings, strict=True):
                found[at] = entry = _entry(reading, followings[at])
                cache.put(keys[at], entry)
        for node, after, known in zip(nodes, followings, found, strict=True):
            assert known is not None
            search.extend(node, after, known)
    return search.found()


def runs_of_words(
    prefix: Prefix,
    words: Sequence[Word],
    criteria: Criteria,
    length: int,
    end: Collection[int],
    context: Sequence[int],
    cache: StateCache,
) -> Steps[list[Word]]:
    """Continue the first `words` to runs of up to `length` words, likeliest first: a beam search over words.

    A run ends early where one of the tokens `end` follows, whose probability then counts. The likeliest are continued
    first, a few at a time, and the others only as far as they are likelier than the runs found.
    """
    best, after = sorted(words, key=_order)[: criteria.width], prefix.after()
    live = best
    together = len(live) if after.following(()).whole else max(1, STEP_ROWS // (criteria.width + BATCH))
    for _ in range(length - 1):
        longest = {run.tokens for run in live}
        best = [run for run in best if run.tokens not in longest]
        grown = set[tuple[int, ...]]()
        while live:
            least = best[-1].log_probability if len(best) == criteria.width else -math.inf
            group = [word for word in live[:together] if word.open > least]
            live = live[together:]
            if not group:
                continue
            readings = yield [request(word.state, word.unread, after, criteria) for word in group]
            contexts = [[*context, *word.tokens] for word in group]
            found = yield from _together(
                [
                    next_words(after, reading, criteria._replace(least=least - word.open), there, cache)
                    for word, reading, there in zip(group, readings, contexts, strict=True)
                ]
            )
            longer = [
                word.followed_by(next_word) for word, some in zip(group, found, strict=True) for next_word in some
            ]
            ends = [
                word._replace(log_probability=word.open + _end(after, reading, end, criteria, there), unread=())
                for word, reading, there in zip(group, readings, contexts, strict=True)
            ]
            grown.update(run.tokens for run in longer)
            best = sorted([*best, *longer, *ends], key=_order)[: criteria.width]
            best = [run for run in best if run.log_probability > -math.inf]
        live = [run for run in best if run.tokens in grown]
    return best


def _known(entry: Entry | None, following: Following) -> Entry | None:
    """Return the entry if it has the log-probabilities of what follows, None if they are to be read."""
    return None if entry is None or entry.log_probabilities_of(following.ids) is None else entry


def _entry(reading: Reading, following: Following) -> Entry:
    """Return what is read of the tokens after a word's first ones."""
    values = reading.candidates
    assert values is not None
    return Entry(reading.state, following.ids, values, float(np.exp(values).sum(dtype=np.float64)))


class _Node(NamedTuple):
    """The first tokens of a word."""

    tokens: tuple[int, ...]
    log_probability: float
    network: float  # the same, by the network alone
    state: Floats  # (S,) before the last token


class _Search:
    """The state of a best-first search for words of several tokens."""

    def __init__(self, prefix: Prefix, criteria: Criteria, context: Sequence[int]) -> None:
        self._prefix = prefix
        self._criteria = criteria
        self._written = criteria.writer.after(context) if criteria.writer else None
        self._open: list[tuple[float, tuple[int, ...], _Node, bool]] = []  # a heap; True: something typed is left
        self._unfinished = 0  # nodes of the heap for which something typed is left
        self._words: dict[str, Word] = {}  # by text, in small letters if it is typed
        self._last = -math.inf  # log-probability of the last of the words wanted, if there are as many
        self._fits = -math.inf  # log-probability that the text goes on as typed

    def extend(self, node: _Node, following: Following, read: Entry) -> None:
        """Take what follows a node's last token: the word may end there, or go on."""
        if following.ends:
            self._finish(node, read)
            if self._goes_on(node, read) <= self._bound():  # so is each longer word
                return
        assert following.ids is not None
        assert read.log_probabilities is not None
        ids, covers = following.ids[following.places], following.covers
        network = values = read.log_probabilities[following.places] + np.float32(node.network)
        if self._written:
            values = self._written.joint(node.tokens, ids, network)
        if self._prefix.typed and not following.ends:
            covered = values if covers is None else values[covers]
            self._fits = float(np.logaddexp(self._fits, log_sum_exp(covered)))
        chosen, most = np.flatnonzero(values > self._bound()), BRANCHES if node.tokens else POOL
        if len(chosen) > most:
            chosen = chosen[likeliest(values[chosen], most)]
        if covers is not None and not covers.all():
            chosen = np.union1d(chosen, np.flatnonzero(~covers))
        left = [False] * len(chosen) if covers is None else (~covers[chosen]).tolist()
        self._unfinished += sum(left)
        for token, log_probability, of_network, rest in zip(
            ids[chosen].tolist(), values[chosen].tolist(), network[chosen].tolist(), left, strict=True
        ):
            tokens = (*node.tokens, token)
            child = _Node(tokens, log_probability, of_network, read.state)
            heappush(self._open, (-log_probability, tokens, child, rest))

    def likeliest_open(self, most: int) -> list[_Node]:
        """Return up to `most` nodes to read next, none when the words wanted are found."""
        nodes, least = list[_Node](), self._bound()
        while self._open and len(nodes) < most:
            _, _, node, left = self._open[0]
            if node.log_probability <= least and not (left and node.log_probability > self._fits + NEGLIGIBLE):
                if not self._unfinished:
                    break
            else:
                nodes.append(node)
            heappop(self._open)
            self._unfinished -= left
        return nodes

    def found(self) -> list[Word]:
        """Return the words found, likeliest first, relative to all words that fit if one is typed."""
        words = sorted(self._words.values(), key=_order)[: self._criteria.width]
        if not self._prefix.typed:
            return words
        return [word._replace(log_probability=word.log_probability - self._fits) for word in words]

    def _bound(self) -> float:
        """Return the log-probability that a word must exceed to be among those wanted."""
        return max(self._criteria.least, LEAST + (self._fits if self._prefix.typed else 0.0), self._last)

    def _goes_on(self, node: _Node, read: Entry) -> float:
        """Return the log-probability of all longer words together."""
        network = node.network + math.log(max(read.together, 1e-30))
        return self._written.longer(node.tokens, network) if self._written else network

    def _finish(self, node: _Node, read: Entry) -> None:
        """Add the word if it may be suggested and no likelier one reads the same."""
        log_probability = node.network + math.log(max(1.0 - read.together, 1e-9))
        if self._written:
            log_probability = self._written.whole(node.tokens, log_probability)
        if log_probability <= self._bound():
            return
        text = self._prefix.text(node.tokens)
        if text is None or text.casefold() in self._criteria.blocked:
            return
        key = text.casefold() if self._prefix.typed else text
        if key not in self._words or self._words[key].log_probability < log_probability:
            self._words[key] = Word(node.tokens, log_probability, node.log_probability, read.state, ())
            values, width = [word.log_probability for word in self._words.values()], self._criteria.width
            self._last = sorted(values)[-width] if len(values) >= width else -math.inf


def _whole_words(prefix: Prefix, reading: Reading, criteria: Criteria, context: Sequence[int]) -> list[Word]:
    """Return the likeliest of words of one token; completions relative to all candidates."""
    following = prefix.following(())
    if following.ids is None:
        assert reading.likeliest is not None
        found: Iterable[tuple[int, float]] = zip(*reading.likeliest, strict=True)
    else:
        values = _first_tokens(following, reading, criteria, context)
        best = likeliest(values, criteria.width + len(criteria.never))
        log_probabilities = values[best] - (log_sum_exp(values) if prefix.typed else 0.0)
        found = zip(following.ids[best].tolist(), log_probabilities.tolist(), strict=True)
    never, state = criteria.never, reading.state
    words = [Word((token,), value, value, state, (token,)) for token, value in found if token not in never]
    return words[: criteria.width]


def _first_tokens(following: Following, reading: Reading, criteria: Criteria, context: Sequence[int]) -> Floats:
    """Return the log-probabilities of the tokens that may begin the next word."""
    assert following.ids is not None
    assert reading.candidates is not None
    if criteria.writer is None:
        return reading.candidates
    return criteria.writer.after(context).joint((), following.ids, reading.candidates)


def _end(prefix: Prefix, reading: Reading, end: Collection[int], criteria: Criteria, context: Sequence[int]) -> float:
    """Return the log-probability that one of the tokens `end` is next, from the reading of `request`."""
    if reading.likeliest is not None:
        return log_sum_exp(np.array([value for token, value in zip(*reading.likeliest, strict=True) if token in end]))
    following = prefix.following(())
    return log_sum_exp(_first_tokens(following, reading, criteria, context)[following.stops])


def _order(word: Word) -> tuple[float, tuple[int, ...]]:
    return -word.log_probability, word.tokens


def _together(searches: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Run several generators side by side, the segments of each step together; return what each returns."""
    answers: dict[int, Any] = {}
    waiting: dict[int, list[Segment]] = {}

    def advance(index: int, readings: list[Reading] | None) -> None:
        try:
            waiting[index] = next(searches[index]) if readings is None else searches[index].send(readings)
        except StopIteration as stop:
            waiting.pop(index, None)
            answers[index] = stop.value

    for index in range(len(searches)):
        advance(index, None)
    while waiting:
        sizes = {index: len(segments) for index, segments in waiting.items()}
        readings = iter((yield [segment for segments in waiting.values() for segment in segments]))
        for index, size in sizes.items():
            advance(index, list(islice(readings, size)))
    return [answers[index] for index in range(len(searches))]


def log_sum_exp(values: Floats) -> float:
    """Return log(sum(exp(values))), -inf for none."""
    peak = float(values.max(initial=-np.inf))
    return peak + math.log(float(np.exp(values - peak).sum(dtype=np.float64))) if peak > -math.inf else -math.inf
