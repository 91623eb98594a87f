"""The language model's predictor: next words and scores, a turn at a time."""

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
Turns: TypeAlias = Generator[list[Segment], list[Reading], Any]
Likely: TypeAlias = tuple[int, float]  # a token and its log-probability
Found: TypeAlias = tuple[tuple[int, ...], float]  # a run of tokens and its log-probability

CHUNK = 32  # tokens of one sequence read in a turn: alone about 3 ms, so nobody waits long for a document's next turn
SENTENCES = 8  # sentences of one text read side by side in a turn
LIGHT = 64  # what a turn may cost that is given in an event loop: about 3 ms
TURN = 512  # what all examples may cost in a turn: about 25 ms, and no more would make a token cheaper
FOLLOWING = 1  # tokens that finding the likeliest of the whole vocabulary costs as much as
BEAM = 10  # least width of the search for runs of several words
LONG_TEXT = 10_000  # characters; a longer one is slow to check
LONG_LINES = 1_000  # the same of its line breaks: of lines without words each is looked into
SHORT_CONTEXT = 500  # tokens whose remembered states are looked for in 0.2 ms at most
LONG_CONTEXT = 2_000  # the same of a text to go on from, which is split into words at once: at worst in 3 ms


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
        return len(self.text) > LONG_CONTEXT


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
        return len(self.text) > LONG_TEXT or self.text.count("\n") + self.text.count("\r") > LONG_LINES


class Suggestion(NamedTuple):
    """One way to go on, as a person would type it."""

    text: str
    probability: float
    log_probability: float  # nats


class Suggestions(NamedTuple):
    """The answer to Suggest, likeliest first."""

    suggestions: list[Suggestion]
    context_tokens: int
    unknown_words: list[str]
    cached_tokens: int  # of the context, answered from remembered states


class Example:
    """A request in progress: its turns, and the segments whose readings it waits for."""

    def __init__(self, turns: Turns, *, short: bool = False) -> None:
        """`short`: it takes no time to find out what is wanted first."""
        self.short = short
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
        tokenizer: Tokenizer,
        *,
        precision: Precision,
        cache: StateCache,
        chunk: int = CHUNK,
        observe_cache: ObserveCache = ignore,
    ) -> None:
        """`observe_cache` is told, turn by turn, how many tokens of contexts were remembered and how many were read."""
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.precision = precision
        self._engine = engine
        self._cache = cache
        self._chunk = chunk
        self._observe_cache = observe_cache
        self._looked_up: list[tuple[int, int]] = []  # this turn, of each context the tokens remembered and read
        after_end = Segment(engine.initial_state(), [vocabulary.end])
        self._start = engine.run([after_end])[0].state
        self._never = (vocabulary.end, vocabulary.unknown)
        self._suggestable = np.delete(np.arange(len(vocabulary)), self._never)
        self._alone = [tokenizer.join([token]) for token in vocabulary.tokens]

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
            make_tokenizer(bundle.manifest.normalisation or "whitespace", vocabulary),
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
            before = self._context(payload)
            return Example(self._suggest(payload, before), short=len(before.ids) <= SHORT_CONTEXT)
        found = chain.from_iterable(sentences(self._lines(payload), self.tokenizer))
        if not payload.text.strip() or next(found, None) is None:
            raise InvalidField("text", f"expected some words, found {_shortened(payload.text)!r}")
        return Example(self._score(self._lines(payload), payload))

    def predict(self, examples: Sequence[Example]) -> list[Any]:
        """One turn for each: its answer, or None if it wants another.

        The first example is always served, the others in their order; what would make the turn longer than TURN is left
        for the next.
        """
        served, segments, room = list[Example](), list[Segment](), TURN
        for example in examples:
            wanted = example.wanted()
            cost = _cost(wanted) or self._chunk  # to look for words and find none is work too
            if not served or cost <= room:
                served.append(example)
                segments += wanted
                room -= cost
        readings = iter(self._engine.run(segments) if segments else [])
        for example in served:
            example.take(list(islice(readings, len(example.wanted()))))
        self._tell_cache()
        return [example.answer for example in examples]

    def fits_inline(self, examples: Sequence[Example]) -> bool:
        """Whether a turn of all these costs no more than LIGHT; no more of them are looked at than tell."""
        room = LIGHT
        for example in examples:
            if room <= 0 or not example.short:
                return False
            room -= _cost(example.wanted())
        return room >= 0

    def _tell_cache(self) -> None:
        if self._looked_up:
            self._observe_cache(*map(sum, zip(*self._looked_up, strict=True)))
            self._looked_up.clear()

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

    def _lines(self, payload: Score) -> Iterator[tuple[str, int]]:
        return lines(payload.text, blank=self.tokenizer.keeps_blank_lines)

    def _context(self, payload: Suggest) -> "_Context":
        """What stands before the next word, or before the one being typed."""
        completion = self.tokenizer.complete(payload.text) if payload.complete else None
        texts = completion.context_texts if completion else context_texts(payload.text, self.tokenizer)
        ids = self.vocabulary.ids(texts)
        unknown = list[str]()
        if self.vocabulary.unknown in ids:
            tokens = completion.context if completion else context(payload.text, self.tokenizer)
            unknown = _unknown_words(payload.text, tokens, ids, self.vocabulary.unknown)
        return _Context(ids, unknown, completion)

    def _suggest(self, payload: Suggest, before: "_Context") -> Turns:
        ids, unknown_words, completion = before
        cached, state = self._cache.longest(ids)
        state = self._start if state is None else state
        *chunks, last = _chunks(ids[cached:], self._chunk)
        for chunk in chunks:
            (reading,) = yield [Segment(state, chunk)]
            state = reading.state
        width = payload.top_k if payload.words == 1 else max(payload.top_k, BEAM)
        count = width + len(self._never)
        candidates = self._candidates(completion) if completion else None
        (reading,) = yield [Segment(state, last, likeliest=0 if completion else count, candidates=candidates)]
        self._cache.put(ids, reading.state)
        self._looked_up.append((cached, len(ids) - cached))

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

    def _candidates(self, completion: Completion) -> Ids:
        """What the word being typed may become, in the order of the ids."""
        return self._suggestable if completion.candidates is None else np.sort(completion.candidates)

    def _search(
        self, start: Expansion[Floats], width: int, length: int
    ) -> Generator[list[Segment], list[Reading], Iterable[Found]]:
        """The `width` likeliest runs of up to `length` words."""
        search = beam_search(start, width=width, length=length, end=self.vocabulary.end)
        count = width + 2  # one may be the end, which a beam looks at beside its width, one the unknown
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
            text = completion.word(self._alone[tokens[0]]) if completion else self._alone[tokens[0]]
        return Suggestion(text, math.exp(log_probability), log_probability)

    def _score(self, text: Iterable[tuple[str, int]], payload: Score) -> Turns:
        # None stands for lines without words, so that looking for some ends a turn too.
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


class _Context(NamedTuple):
    """What a suggestion goes on from."""

    ids: list[int]
    unknown_words: list[str]
    completion: Completion | None


@dataclass(eq=False, slots=True)
class _Stream:
    """A sequence being scored: its tokens still to come, the state so far and what it has been worth."""

    tokens: Iterator[Token | None]
    state: Floats
    score: TextScore = field(default_factory=TextScore)
    kept: list[TokenScore] = field(default_factory=list)


def _chunks(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """Pieces of at most `size`; of nothing one empty piece."""
    return [ids[start : start + size] for start in range(0, len(ids), size)] or [ids]


def _likely(reading: Reading, never: Sequence[int]) -> list[Likely]:
    """The likeliest words but those `never` suggested."""
    assert reading.likeliest is not None
    return [likely for likely in zip(*reading.likeliest, strict=True) if likely[0] not in never]


def _completing(reading: Reading, candidates: Ids, width: int) -> list[Likely]:
    """The likeliest of the candidates; over all of these the probabilities sum to 1."""
    assert reading.candidates is not None
    best = likeliest(reading.candidates, width)
    log_probabilities = reading.candidates[best] - _log_sum_exp(reading.candidates)
    return list(zip(candidates[best].tolist(), log_probabilities.tolist(), strict=True))


def _expansion(found: Sequence[Likely], reading: Reading) -> Expansion[Floats]:
    """What a search goes on from."""
    values = np.array([value for _, value in found], np.float32)
    return Expansion(values, reading.state, [token for token, _ in found])


def _unknown_words(text: str, tokens: Sequence[Token], ids: Sequence[int], unknown: int) -> list[str]:
    """The words of `text` that the model reads as `<unk>`, as sent, each once."""
    words = (text[token.start : token.end] for token, found in zip(tokens, ids, strict=True) if found == unknown)
    return list(dict.fromkeys(words))


def _cost(segments: Sequence[Segment]) -> int:
    """What a turn of these segments costs, in tokens."""
    return sum([len(segment.tokens) + FOLLOWING * segment.looks_on for segment in segments])


def _require_some(field: str, value: int) -> None:
    if value < 1:
        raise InvalidField(field, f"expected at least 1, found {value}")


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def _log_sum_exp(values: Floats) -> float:
    """log(sum(exp)), 0 if nothing is above -inf."""
    peak = float(values.max(initial=-np.inf))
    return peak + math.log(float(np.exp(values - peak).sum(dtype=np.float64))) if peak > -math.inf else 0.0
