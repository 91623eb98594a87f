"""The language model's predictor: next words and scores, one scheduling step at a time."""

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from app.bundle import Bundle
from app.errors import BundleError, InvalidField
from app.runtime.beam_search import Expansion, beam_search
from app.runtime.onnx_session import Precision
from app.runtime.recurrent_engine import Details, Floats, Reading, RecurrentEngine, Segment, likeliest
from app.runtime.scheduler import ObserveCache, Resources, answer_all, ignore
from app.runtime.scores import TextScore, TokenScore
from app.runtime.state_cache import StateCache
from app.text import (
    BLANK,
    Completion,
    Ids,
    Token,
    Tokenizer,
    Vocabulary,
    context,
    context_texts,
    lines,
    make_tokenizer,
    sentences,
)

Mode: TypeAlias = Literal["document", "sentence"]
Steps: TypeAlias = Generator[list[Segment], list[Reading], Any]
Likely: TypeAlias = tuple[int, float]  # a token and its log-probability
Found: TypeAlias = tuple[tuple[int, ...], float]  # a run of tokens and its log-probability

# Costs are in tokens read.
CHUNK = 32  # tokens of one sequence per step: about 3 ms, a short wait for what shares the step with a document
SENTENCES = 8  # sentences of one text read in parallel per step
INLINE_COST = 64  # limit of a step that runs inline on the event loop: about 3 ms
MAX_STEP_COST = 512  # limit of a step over all examples: about 25 ms; more would make no token cheaper
SOFTMAX_COST = 1  # of finding the likeliest next tokens of the whole vocabulary
BEAM = 10  # least width of the search for runs of several words
LONG_TEXT = 10_000  # characters; a longer text is slow to prepare
LONG_LINES = 1_000  # line breaks; more are slow to prepare: each line is searched for words
SHORT_CONTEXT = 500  # tokens; a lookup of its prefixes in the state cache takes 0.2 ms at most
LONG_CONTEXT = 2_000  # characters; a longer context is slow to prepare: it is tokenized at once, in up to 3 ms


@dataclass(frozen=True, slots=True)
class Suggest:
    """A request for the next words after `text`; see POST /next-word."""

    text: str
    top_k: int = 5
    words: int = 1
    complete: bool = False

    @property
    def slow(self) -> bool:
        """True if preparing it would block the event loop for too long."""
        return len(self.text) > LONG_CONTEXT


@dataclass(frozen=True, slots=True)
class Score:
    """A request for the log-likelihood of `text`; see POST /perplexity."""

    text: str
    mode: Mode = "document"
    per_token: bool = False
    alternatives: int = 0

    @property
    def slow(self) -> bool:
        """True if preparing it would block the event loop for too long."""
        return len(self.text) > LONG_TEXT or self.text.count("\n") + self.text.count("\r") > LONG_LINES


class Suggestion(NamedTuple):
    """One continuation, as a person would type it."""

    text: str
    probability: float
    log_probability: float  # nats


class Suggestions(NamedTuple):
    """The answer to Suggest, likeliest first."""

    suggestions: list[Suggestion]
    context_tokens: int
    unknown_words: list[str]
    cached_tokens: int  # leading context tokens whose state was cached


class Example:
    """A request in progress: the generator of its steps and the segments that its next step reads."""

    def __init__(self, steps: Steps, *, short: bool = False) -> None:
        """`short`: computing the first segments takes negligible time."""
        self.short = short
        self._steps = steps
        self._segments: list[Segment] | None = None
        self.answer: Any = None

    def segments(self) -> list[Segment]:
        """Return the segments to read in the next step; empty once there is an answer."""
        if self._segments is None:
            self._advance(lambda: next(self._steps))
        return self._segments or []

    def send(self, readings: list[Reading]) -> None:
        """Continue with the readings of the segments."""
        if self.answer is None:
            self._advance(lambda: self._steps.send(readings))

    def _advance(self, step: Callable[[], list[Segment]]) -> None:
        try:
            self._segments = step()
        except StopIteration as stop:
            self._segments, self.answer = [], stop.value


class LanguageModelPredictor:
    """The `Predictor` of one language model: suggests next words and scores texts."""

    # nats; processors' exp and tanh differ in the seventh digit, a broken kernel in the first
    PROBE_TOLERANCE: ClassVar[float] = 1e-3

    def __init__(
        self,
        engine: RecurrentEngine,
        vocabulary: Vocabulary,
        tokenizer: Tokenizer,
        *,
        precision: Precision,
        cache: StateCache,
        chunk: int = CHUNK,
        observe_cache: ObserveCache = ignore,
    ) -> None:
        """`observe_cache` is called after each step with the context tokens found in the cache and those read."""
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.precision = precision
        self._engine = engine
        self._cache = cache
        self._chunk = chunk
        self._observe_cache = observe_cache
        self._lookups: list[tuple[int, int]] = []  # of this step, per context: tokens cached and read
        after_end = Segment(engine.initial_state(), [vocabulary.end])
        self._start = engine.run([after_end])[0].state
        self._never = (vocabulary.end, vocabulary.unknown)
        self._suggestable = np.delete(np.arange(len(vocabulary)), self._never)
        self._words = [tokenizer.join([token]) for token in vocabulary.tokens]

    @classmethod
    def open(
        cls, bundle: Bundle, precision: Precision, resources: Resources, *, chunk: int = CHUNK
    ) -> "LanguageModelPredictor":
        """Open a bundle's graphs of this precision. Raise BundleError if they can't be run."""
        engine = RecurrentEngine.open(bundle, precision, threads=resources.threads)
        words = bundle.text("vocabulary.txt")
        found = hashlib.sha256(words.encode()).hexdigest()
        if found != bundle.manifest.vocabulary_sha256:
            expected = bundle.manifest.vocabulary_sha256
            raise BundleError(f"{bundle.path('vocabulary.txt')}: expected the sha256 {expected}, found {found}")
        vocabulary = Vocabulary(words.split("\n"))
        if len(vocabulary) != engine.vocabulary_size:
            raise BundleError(
                f"{bundle.path('vocabulary.txt')}: expected {engine.vocabulary_size} words, found {len(vocabulary)}"
            )
        return cls(
            engine,
            vocabulary,
            make_tokenizer(bundle.manifest.normalisation or "whitespace", vocabulary, resources.tokenizers),
            precision=precision,
            cache=StateCache(resources.cache_bytes),
            chunk=chunk,
            observe_cache=resources.observe_cache,
        )

    def prepare(self, payload: Suggest | Score) -> Example:
        """Validate a payload; all reading is left to the steps. Raise InvalidField for a text without words."""
        if isinstance(payload, Suggest):
            _require_some("top_k", payload.top_k)
            _require_some("words", payload.words)
            before = self._context(payload)
            return Example(self._suggest(payload, before), short=len(before.ids) <= SHORT_CONTEXT)
        found = chain.from_iterable(sentences(self._lines(payload), self.tokenizer))
        if not payload.text.strip() or next(found, None) is None:
            shown = payload.text if len(payload.text) <= 40 else f"{payload.text[:40]}..."
            raise InvalidField("text", f"expected some words, found {shown!r}")
        return Example(self._score(self._lines(payload), payload))

    def predict(self, examples: Sequence[Example]) -> list[Any]:
        """Run one step; return per example the answer, or None if it needs another step.

        The first example is always advanced, the others in order while the step's cost stays within MAX_STEP_COST.
        """
        active, segments, room = list[Example](), list[Segment](), MAX_STEP_COST
        for example in examples:
            needed = example.segments()
            cost = _cost(needed) or self._chunk  # searching blank lines for words is work too
            if not active or cost <= room:
                active.append(example)
                segments += needed
                room -= cost
        readings = iter(self._engine.run(segments) if segments else [])
        for example in active:
            example.send(list(islice(readings, len(example.segments()))))
        if self._lookups:
            self._observe_cache(*map(sum, zip(*self._lookups, strict=True)))
            self._lookups.clear()
        return [example.answer for example in examples]

    def fits_inline(self, examples: Sequence[Example]) -> bool:
        """Return whether one step over all examples costs at most INLINE_COST."""
        room = INLINE_COST
        for example in examples:
            if room <= 0 or not example.short:
                return False
            room -= _cost(example.segments())
        return room >= 0

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """Return [text, log-probability] of each suggestion for `payload`, the fields of a Suggest."""
        (answer,) = answer_all(self, [self.prepare(Suggest(**payload))])
        return [[suggestion.text, suggestion.log_probability] for suggestion in answer.suggestions]

    def score_lines(self, text: Iterable[tuple[str, int]], mode: Mode = "document") -> TextScore:
        """Score a stream of lines, each with its offset, in constant memory."""
        characters = 0

        def counted() -> Iterator[tuple[str, int]]:
            nonlocal characters
            for line, offset in text:
                characters = offset + len(line)
                yield line, offset

        score: TextScore = answer_all(self, [Example(self._score(counted(), Score("", mode)))])[0]
        return replace(score, characters=characters)

    def _lines(self, payload: Score) -> Iterator[tuple[str, int]]:
        return lines(payload.text, blank=self.tokenizer.keeps_blank_lines)

    def _context(self, payload: Suggest) -> "_Context":
        """Tokenize the text before the next word, or before the one being typed."""
        completion = self.tokenizer.complete(payload.text) if payload.complete else None
        texts = completion.context_texts if completion else context_texts(payload.text, self.tokenizer)
        ids = self.vocabulary.ids(texts)
        unknown = list[str]()
        if self.vocabulary.unknown in ids:
            tokens = completion.context if completion else context(payload.text, self.tokenizer)
            unknown = _unknown_words(payload.text, tokens, ids, self.vocabulary.unknown)
        return _Context(ids, unknown, completion)

    def _suggest(self, payload: Suggest, before: "_Context") -> Steps:
        ids, unknown_words, completion = before
        cached, state = self._cache.longest(ids)
        state = self._start if state is None else state
        *chunks, last = _chunks(ids[cached:], self._chunk)
        for chunk in chunks:
            (reading,) = yield [Segment(state, chunk)]
            state = reading.state
        width = payload.top_k if payload.words == 1 else max(payload.top_k, BEAM)
        count = width + len(self._never)
        candidates: Ids | None = None  # ascending ids of the words that the typed prefix may become
        if completion:
            candidates = self._suggestable if completion.candidates is None else np.sort(completion.candidates)
        (reading,) = yield [Segment(state, last, likeliest=0 if completion else count, candidates=candidates)]
        self._cache.put(ids, reading.state)
        self._lookups.append((cached, len(ids) - cached))

        first = _likely(reading, self._never) if candidates is None else _completing(reading, candidates, width)
        found: Iterable[Found] = (((token,), value) for token, value in first)
        if payload.words > 1:
            found = yield from self._search(_expansion(first, reading), width, payload.words)
        return Suggestions(
            [self._suggestion(tokens, value, completion) for tokens, value in islice(found, payload.top_k)],
            len(ids),
            unknown_words,
            cached,
        )

    def _search(
        self, start: Expansion[Floats], width: int, length: int
    ) -> Generator[list[Segment], list[Reading], Iterable[Found]]:
        """Find the `width` likeliest runs of up to `length` words."""
        search = beam_search(start, width=width, length=length, end=self.vocabulary.end)
        count = width + 2  # the end and `<unk>` may be among them
        try:
            hypotheses = next(search)
            while True:
                readings = yield [Segment(h.state, h.tokens[-1:], likeliest=count) for h in hypotheses]
                unknown = (self.vocabulary.unknown,)
                hypotheses = search.send([_expansion(_likely(reading, unknown), reading) for reading in readings])
        except StopIteration as stop:
            return [(hypothesis.tokens, hypothesis.log_probability) for hypothesis in stop.value]

    def _suggestion(self, tokens: Sequence[int], log_probability: float, completion: Completion | None) -> Suggestion:
        if len(tokens) > 1:
            words = [self.vocabulary.tokens[token] for token in tokens]
            text = completion.text(words) if completion else self.tokenizer.join(words)
        else:
            text = completion.word(self._words[tokens[0]]) if completion else self._words[tokens[0]]
        return Suggestion(text, math.exp(log_probability), log_probability)

    def _score(self, text: Iterable[tuple[str, int]], payload: Score) -> Steps:
        # None marks lines without words, so that a step may end among them
        found = (iter([None]) if tokens is BLANK else tokens for tokens in sentences(text, self.tokenizer))
        streams = iter([chain.from_iterable(found)]) if payload.mode == "document" else found
        details = payload.alternatives if payload.per_token else None
        total, kept = TextScore(), list[TokenScore]()
        while group := [_Stream(tokens, self._start) for tokens in islice(streams, SENTENCES)]:
            while taken := [(stream, some) for stream in group if (some := list(islice(stream.tokens, self._chunk)))]:
                active = [(stream, words) for stream, some in taken if (words := [*filter(None, some)])]
                ids = [self.vocabulary.ids(token.text for token in chunk) for _, chunk in active]
                readings = yield [
                    Segment(stream.state, chunk_ids, score=True, details=details)
                    for (stream, _), chunk_ids in zip(active, ids, strict=True)
                ]
                for (stream, chunk), chunk_ids, reading in zip(active, ids, readings, strict=True):
                    stream.state = reading.state
                    stream.score += self._sums(chunk_ids, reading.scores)
                    stream.kept += map(self._token_score, chunk, chunk_ids, reading.scores, reading.details)
            for stream in group:
                total += stream.score
                kept += stream.kept
        return replace(total, characters=len(payload.text), token_scores=kept if payload.per_token else None)

    def _sums(self, ids: Sequence[int], scores: Sequence[float]) -> TextScore:
        unknown = self.vocabulary.unknown
        lost = [score for token, score in zip(ids, scores, strict=True) if token == unknown] if unknown in ids else []
        return TextScore(
            log_likelihood=sum(scores),
            log_likelihood_unknown=sum(lost),
            tokens=len(ids),
            sentences=ids.count(self.vocabulary.end),
            unknown_tokens=len(lost),
        )

    def _token_score(self, token: Token, token_id: int, log_probability: float, details: Details) -> TokenScore:
        others = zip(*details.alternatives, strict=True)
        alternatives = [(self.vocabulary.tokens[other], value) for other, value in others]
        unknown = token_id == self.vocabulary.unknown
        return TokenScore(token.text, token.start, token.end, log_probability, details.rank, unknown, alternatives)


def usage(answer: Suggestions | TextScore) -> dict[str, int]:
    """Return the tokens read for an answer and, of a context, those that were cached."""
    if isinstance(answer, TextScore):
        return {"tokens": answer.tokens}
    return {"tokens": answer.context_tokens, "cached": answer.cached_tokens}


class _Context(NamedTuple):
    """The tokenized context of a suggestion."""

    ids: list[int]
    unknown_words: list[str]
    completion: Completion | None


@dataclass(eq=False, slots=True)
class _Stream:
    """A sequence being scored: its remaining tokens, the current state and the score so far."""

    tokens: Iterator[Token | None]
    state: Floats
    score: TextScore = field(default_factory=TextScore)
    kept: list[TokenScore] = field(default_factory=list)


def _chunks(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split into chunks of at most `size`; an empty sequence gives one empty chunk."""
    return [ids[start : start + size] for start in range(0, len(ids), size)] or [ids]


def _likely(reading: Reading, never: Sequence[int]) -> list[Likely]:
    """Return the likeliest tokens except those `never` suggested."""
    assert reading.likeliest is not None
    return [likely for likely in zip(*reading.likeliest, strict=True) if likely[0] not in never]


def _completing(reading: Reading, candidates: Ids, width: int) -> list[Likely]:
    """Return the likeliest candidates, their probabilities normalised over all candidates."""
    assert reading.candidates is not None
    best = likeliest(reading.candidates, width)
    log_probabilities = reading.candidates[best] - _log_sum_exp(reading.candidates)
    return list(zip(candidates[best].tolist(), log_probabilities.tolist(), strict=True))


def _expansion(found: Sequence[Likely], reading: Reading) -> Expansion[Floats]:
    """Return the beam search's input from the tokens found and the state of a reading."""
    values = np.array([value for _, value in found], np.float32)
    return Expansion(values, reading.state, [token for token, _ in found])


def _unknown_words(text: str, tokens: Sequence[Token], ids: Sequence[int], unknown: int) -> list[str]:
    """Return the distinct words of `text` that the model reads as `<unk>`, as typed."""
    words = (text[token.start : token.end] for token, found in zip(tokens, ids, strict=True) if found == unknown)
    return list(dict.fromkeys(words))


def _cost(segments: Sequence[Segment]) -> int:
    """Return the cost of reading these segments, in tokens."""
    return sum([len(segment.tokens) + SOFTMAX_COST * segment.predicts for segment in segments])


def _require_some(field: str, value: int) -> None:
    if value < 1:
        raise InvalidField(field, f"expected at least 1, found {value}")


def _log_sum_exp(values: Floats) -> float:
    """Return log(sum(exp(values))), 0 if no value is above -inf."""
    peak = float(values.max(initial=-np.inf))
    return peak + math.log(float(np.exp(values - peak).sum(dtype=np.float64))) if peak > -math.inf else 0.0
