"""The language model's predictor: next words and scores, a turn at a time."""

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from app.bundle import Bundle
from app.errors import BundleError, InvalidField
from app.runtime.batching import ObserveCache, Resources, answer_all, ignore
from app.runtime.decoding import Expansion, Hypothesis, beam_search
from app.runtime.engine import Floats, Precision, Reading, RecurrentEngine, Segment, TokenReading
from app.runtime.scores import TextScore, TokenScore
from app.runtime.state_cache import StateCache
from app.text import Completion, Normaliser, Token, Vocabulary, context, lines, normaliser, sentences

Mode: TypeAlias = Literal["document", "sentence"]
Turns: TypeAlias = Generator[list[Segment], list[Reading], Any]

CHUNK = 32  # tokens of one sequence read in a turn: alone about 4 ms, so nobody waits long for a document's next turn
SENTENCES = 8  # sentences of one text read side by side in a turn
TURN = 1024  # what all examples may cost in a turn: about 60 ms
DISTRIBUTION = 4  # tokens that a row of the whole vocabulary, searched for the likeliest, costs as much as
BEAM = 10  # least width of the search for runs of several words
LONG_TEXT = 10_000  # characters; a longer one is slow to check


@dataclass(frozen=True, slots=True)
class Suggest:
    """What comes after `text`? See POST /next-word."""

    text: str
    top_k: int = 5
    words: int = 1
    complete: bool = False

    @property
    def slow(self) -> bool:
        """Whether checking it would hold up an event loop."""
        return len(self.text) > LONG_TEXT


@dataclass(frozen=True, slots=True)
class Score:
    """How likely is `text`? See POST /perplexity."""

    text: str
    mode: Mode = "document"
    per_token: bool = False
    alternatives: int = 0

    @property
    def slow(self) -> bool:
        """Whether checking it would hold up an event loop."""
        return len(self.text) > LONG_TEXT


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One way to go on, as a person would type it."""

    text: str
    probability: float
    log_probability: float  # nats


@dataclass(frozen=True, slots=True)
class Suggestions:
    """The answer to Suggest, likeliest first."""

    suggestions: list[Suggestion]
    context_tokens: int
    unknown_words: list[str]
    cached_tokens: int  # of the context, answered from remembered states


class Example:
    """A request in progress: its turns, and the segments whose readings it waits for."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._wanted: list[Segment] | None = None
        self.answer: Any = None

    def wanted(self) -> list[Segment]:
        """What to read for the next turn; nothing once there is an answer."""
        if self._wanted is None:
            self._advance(lambda: next(self._turns))
        return self._wanted or []

    def take(self, readings: list[Reading]) -> None:
        """Go on with what was read."""
        if self.answer is None:
            self._advance(lambda: self._turns.send(readings))

    def _advance(self, turn: Callable[[], list[Segment]]) -> None:
        try:
            self._wanted = turn()
        except StopIteration as stop:
            self._wanted, self.answer = [], stop.value


class LanguageModelPredictor:
    """Suggests and scores with one model (the seam `Predictor`)."""

    # nats; processors' exp and tanh differ in the seventh digit, a broken kernel in the first
    PROBE_TOLERANCE: ClassVar[float] = 1e-3

    def __init__(
        self,
        engine: RecurrentEngine,
        vocabulary: Vocabulary,
        normaliser: Normaliser,
        *,
        precision: Precision,
        cache: StateCache,
        chunk: int = CHUNK,
        observe_cache: ObserveCache = ignore,
    ) -> None:
        """`observe_cache` is told how many tokens of each context were remembered and how many had to be read."""
        self.vocabulary = vocabulary
        self.normaliser = normaliser
        self.precision = precision
        self._engine = engine
        self._cache = cache
        self._chunk = chunk
        self._observe_cache = observe_cache
        after_end = Segment(engine.initial_state(), [vocabulary.end])
        self._start = engine.run([after_end])[0].state
        self._never = np.array([vocabulary.end, vocabulary.unknown])

    @classmethod
    def open(
        cls, bundle: Bundle, precision: Precision, resources: Resources, *, chunk: int = CHUNK
    ) -> "LanguageModelPredictor":
        """The predictor of a bundle, on its graphs of this precision. Raise BundleError if they can't be run."""
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
            normaliser(bundle.manifest.normalisation or "whitespace", vocabulary),
            precision=precision,
            cache=StateCache(resources.cache_bytes),
            chunk=chunk,
            observe_cache=resources.observe_cache,
        )

    def prepare(self, payload: Suggest | Score) -> Example:
        """Check a payload; the work itself is left to the turns. Raise InvalidField for a text that can't be scored."""
        if isinstance(payload, Suggest):
            _require_some("top_k", payload.top_k)
            _require_some("words", payload.words)
            return Example(self._suggest(payload))
        if not payload.text.strip() or next(sentences(lines(payload.text), self.normaliser), None) is None:
            raise InvalidField("text", f"expected some words, found {_shortened(payload.text)!r}")
        return Example(self._score(lines(payload.text), payload))

    def predict(self, examples: Sequence[Example]) -> list[Any]:
        """One turn for each: its answer, or None if it wants another.

        The first example is always served, the others in their order; what would make the turn longer than TURN is left
        for the next.
        """
        served, room = list[Example](), TURN
        for example in examples:
            if not served or _cost(example) <= room:
                served.append(example)
                room -= _cost(example)
        segments = [segment for example in served for segment in example.wanted()]
        readings = iter(self._engine.run(segments) if segments else [])
        for example in served:
            example.take(list(islice(readings, len(example.wanted()))))
        return [example.answer for example in examples]

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """[text, log-probability] of each suggestion for `payload`, the fields of a Suggest."""
        (answer,) = answer_all(self, [self.prepare(Suggest(**payload))])
        return [[suggestion.text, suggestion.log_probability] for suggestion in answer.suggestions]

    def score_lines(self, text: Iterable[tuple[str, int]], mode: Mode = "document") -> TextScore:
        """Score lines (each with its offset) as they come, in memory that does not grow with their number."""
        characters = 0

        def counted() -> Iterator[tuple[str, int]]:
            nonlocal characters
            for line, offset in text:
                characters = offset + len(line)
                yield line, offset

        score: TextScore = answer_all(self, [Example(self._score(counted(), Score("", mode)))])[0]
        return replace(score, characters=characters)

    def _suggest(self, payload: Suggest) -> Turns:
        completion = self.normaliser.complete(payload.text) if payload.complete else None
        before = completion.context if completion else context(payload.text, self.normaliser)
        ids = self.vocabulary.ids(token.text for token in before)
        cached, state = self._cache.longest(ids)
        state = self._start if state is None else state
        *chunks, last = _chunks(ids[cached:], self._chunk)
        for chunk in chunks:
            (reading,) = yield [Segment(state, chunk)]
            state = reading.state
        (reading,) = yield [Segment(state, last, distribution=True)]
        self._cache.put(ids, reading.state)
        self._observe_cache(cached, len(ids) - cached)

        allowed = self._allow(reading.distribution, completion)
        found = yield from self._search(Expansion(allowed, reading.state), payload)
        return Suggestions(
            suggestions=[self._suggestion(hypothesis, completion) for hypothesis in found[: payload.top_k]],
            context_tokens=len(ids),
            unknown_words=_unknown_words(payload.text, before, ids, self.vocabulary.unknown),
            cached_tokens=cached,
        )

    def _allow(self, distribution: Floats | None, completion: Completion | None) -> Floats:
        """The log-probabilities of what may be suggested first, -inf for all else; over completions they sum to 1."""
        assert distribution is not None
        allowed = np.full_like(distribution, -np.inf)
        if completion and completion.candidates is not None:
            allowed[completion.candidates] = distribution[completion.candidates]
        else:
            allowed[:] = distribution
        allowed[self._never] = -np.inf
        return allowed - _log_sum_exp(allowed) if completion else allowed

    def _search(
        self, start: Expansion[Floats], payload: Suggest
    ) -> Generator[list[Segment], list[Reading], list[Hypothesis[Floats]]]:
        width = payload.top_k if payload.words == 1 else max(payload.top_k, BEAM)
        search = beam_search(start, width=width, length=payload.words, end=self.vocabulary.end)
        try:
            hypotheses = next(search)
            while True:
                readings = yield [Segment(h.state, h.tokens[-1:], distribution=True) for h in hypotheses]
                hypotheses = search.send([self._expansion(reading) for reading in readings])
        except StopIteration as stop:
            found: list[Hypothesis[Floats]] = stop.value
            return found

    def _expansion(self, reading: Reading) -> Expansion[Floats]:
        assert reading.distribution is not None
        reading.distribution[self.vocabulary.unknown] = -np.inf
        return Expansion(reading.distribution, reading.state)

    def _suggestion(self, hypothesis: Hypothesis[Floats], completion: Completion | None) -> Suggestion:
        tokens = [self.vocabulary.tokens[token] for token in hypothesis.tokens]
        text = completion.text(tokens) if completion else self.normaliser.join(tokens)
        return Suggestion(text, math.exp(hypothesis.log_probability), hypothesis.log_probability)

    def _score(self, text: Iterable[tuple[str, int]], payload: Score) -> Turns:
        found = sentences(text, self.normaliser)
        streams = iter([chain.from_iterable(found)]) if payload.mode == "document" else found
        details = payload.alternatives if payload.per_token else None
        total, kept = TextScore(), list[TokenScore]()
        while group := [_Stream(tokens, self._start) for tokens in islice(streams, SENTENCES)]:
            while active := [
                (stream, chunk) for stream in group if (chunk := list(islice(stream.tokens, self._chunk)))
            ]:
                ids = [self.vocabulary.ids(token.text for token in chunk) for _, chunk in active]
                readings = yield [
                    Segment(stream.state, chunk_ids, score=True, details=details)
                    for (stream, _), chunk_ids in zip(active, ids, strict=True)
                ]
                for (stream, chunk), chunk_ids, reading in zip(active, ids, readings, strict=True):
                    stream.state = reading.state
                    stream.score += self._sums(chunk_ids, reading.scores)
                    if payload.per_token:
                        stream.kept += map(self._token_score, chunk, chunk_ids, reading.scores)
            for stream in group:
                total += stream.score
                kept += stream.kept
        return replace(total, characters=len(payload.text), token_scores=kept if payload.per_token else None)

    def _sums(self, ids: Sequence[int], readings: Sequence[TokenReading]) -> TextScore:
        unknown = [reading for token, reading in zip(ids, readings, strict=True) if token == self.vocabulary.unknown]
        return TextScore(
            log_likelihood=sum(reading.log_probability for reading in readings),
            log_likelihood_unknown=sum(reading.log_probability for reading in unknown),
            tokens=len(ids),
            sentences=ids.count(self.vocabulary.end),
            unknown_tokens=len(unknown),
        )

    def _token_score(self, token: Token, token_id: int, reading: TokenReading) -> TokenScore:
        assert reading.rank is not None
        alternatives = [(self.vocabulary.tokens[other], value) for other, value in reading.alternatives]
        unknown = token_id == self.vocabulary.unknown
        return TokenScore(
            token.text, token.start, token.end, reading.log_probability, reading.rank, unknown, alternatives
        )


@dataclass(eq=False, slots=True)
class _Stream:
    """A sequence being scored: its tokens still to come, the state so far and what it has been worth."""

    tokens: Iterator[Token]
    state: Floats
    score: TextScore = field(default_factory=TextScore)
    kept: list[TokenScore] = field(default_factory=list)


def _chunks(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """Pieces of at most `size`; of nothing one empty piece."""
    return [ids[start : start + size] for start in range(0, len(ids), size)] or [ids]


def _unknown_words(text: str, tokens: Sequence[Token], ids: Sequence[int], unknown: int) -> list[str]:
    """The words of `text` that the model reads as `<unk>`, as sent, each once."""
    words = (text[token.start : token.end] for token, found in zip(tokens, ids, strict=True) if found == unknown)
    return list(dict.fromkeys(words))


def _cost(example: Example) -> int:
    """What an example's turn costs, in tokens."""
    return sum(len(segment.tokens) + DISTRIBUTION * segment.distribution for segment in example.wanted())


def _require_some(field: str, value: int) -> None:
    if value < 1:
        raise InvalidField(field, f"expected at least 1, found {value}")


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def _log_sum_exp(values: Floats) -> float:
    """log(sum(exp)), 0 if nothing is above -inf."""
    peak = float(values.max())
    return peak + math.log(float(np.exp(values - peak).sum(dtype=np.float64))) if peak > -math.inf else 0.0
