"""The language model's predictor: next words and scores, one scheduling step at a time."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, StrictBool, StrictInt
from pydantic_core import PydanticCustomError

from app.bundle import Bundle
from app.runtime.families.completions import Complete, Completer, Completion, Part, read_prompt
from app.runtime.fields import PAYLOAD, WHOLE, LogProbability, Probability, Text, require_ranges
from app.runtime.onnx_session import Precision
from app.runtime.predictor import ObserveCache, Partial, Resources, answer_all, ignore
from app.runtime.recurrent_engine import Pace, Reading, RecurrentEngine, Segment
from app.runtime.scores import TextScore
from app.runtime.scoring import Mode, Score, Scorer
from app.runtime.state_cache import Entry, StateCache
from app.runtime.word_search import Criteria, Word, next_words, request, runs_of_words
from app.runtime.writer_cache import Histories, Weights, WriterCache
from app.text import Following, Prefix, Tokenizer
from app.text.blocked_words import BLOCKED_WORDS

Steps: TypeAlias = Generator[list[Segment], list[Reading], Any]

# Costs are in tokens read. Limits are for a model that needs UNIT_S a token; a slower one gets less in proportion.
UNIT_S = 50e-6
STEP_COST = 8  # of a step beside its tokens: the weights come from memory
CHUNK = 64  # tokens of one sequence per step: 3 to 6 ms, a short wait for what shares the step with a document
INLINE_COST = 64  # limit of a step that runs inline on the event loop: about 3 ms
MAX_STEP_COST = 256  # limit of a step over all examples: about 12 ms; more would make few tokens cheaper
LIGHT_COST = 24  # of a keystroke's step at most: a step with such an example has, beside its first,
SHORT_STEP_COST = 128  # this limit: a keystroke waits for 7 ms of others' searches
SOFTMAX_COST = 1  # of finding the likeliest next tokens of the whole vocabulary
SHARES = 6_000  # words of a writer whose shares after a context cost as much,
SEARCHED = 16  # likeliest tokens whose search costs as much again: 50 for each of 50 runs take 12 ms
BEAM = 10  # least width of the search for runs of several words of one token
WORD_BEAM = 4  # the same for words of several tokens, each of which is a search
SHORT_CONTEXT = 500  # tokens; a lookup of its prefixes in the state cache takes 0.2 ms at most
HISTORY_BYTES = 64 * 1024  # of UTF-8, of all earlier texts of a writer
HISTORIES_BYTES = 16 * 2**20  # of the histories whose tokens are remembered: 60 writers and more
LONG_CONTEXT = 2_000  # characters; a longer context is slow to prepare: it is tokenized at once, in up to 3 ms

TopK = Annotated[StrictInt, Field(ge=1, le=50, description="Largest number of suggestions."), WHOLE]


def _of_bounded_size(texts: str | list[str]) -> str | list[str]:
    if sum(len(text.encode()) for text in texts) > HISTORY_BYTES:
        raise PydanticCustomError("too_long", "expected at most {most} bytes of UTF-8", {"most": HISTORY_BYTES})
    return texts


@dataclass(frozen=True, slots=True)
class Suggest:
    """A request for suggestions of the next words of a text."""

    __pydantic_config__: ClassVar[ConfigDict] = PAYLOAD
    bulk: ClassVar[bool] = False

    text: Annotated[
        Text, Field(description="The text written so far, in everyday or in the corpus's spelling. May be empty.")
    ]
    top_k: TopK = 5
    words: Annotated[
        StrictInt,
        Field(ge=1, le=5, description="Largest number of words in a suggestion; more than one takes a beam search."),
        WHOLE,
    ] = 1
    complete: Annotated[
        StrictBool,
        Field(description="Treat the text's last run of non-space characters as a partly typed word, and complete it."),
    ] = False
    history: Annotated[
        Text | list[Text],
        Field(description="Earlier texts of the same writer, oldest first, of 64 KiB together at most."),
        AfterValidator(_of_bounded_size),
    ] = field(default_factory=list)
    adapt: Annotated[
        StrictBool | None,
        Field(
            description="Make the words of `history`, and those of `text`, likelier to come again. Null: as published "
            "with the model; false ignores the history."
        ),
    ] = None

    @property
    def slow(self) -> bool:
        """True if preparing it would block the event loop for too long."""
        return len(self.text) + sum(map(len, self.history)) > LONG_CONTEXT


@dataclass(slots=True)
class Suggestion:
    """One continuation, as a person would type it."""

    text: str
    probability: Probability
    log_probability: LogProbability


@dataclass(slots=True)
class Suggestions:
    """The answer to Suggest, likeliest first."""

    suggestions: list[Suggestion]
    context_tokens: Annotated[int, Field(description="Number of tokens in the context of the suggestions.")]
    unknown_words: Annotated[list[str], Field(description="Words of the text outside the vocabulary.")]
    cached_tokens: Annotated[int, Field(description="Number of context_tokens whose state was cached.")]


class Example:
    """A request in progress: the generator of its steps and the segments that its next step reads."""

    def __init__(self, steps: Steps, *, short: bool = False, shares: int = 0, parts: list[Part] | None = None) -> None:
        """`short`: computing the first segments takes negligible time; `shares`: cost of a writer's words a search.

        `parts` receives those of a partial answer.
        """
        self.short = short
        self._shares = shares
        self._parts = [] if parts is None else parts
        self._steps = steps
        self._segments: list[Segment] | None = None
        self.answer: Any = None

    def segments(self) -> list[Segment]:
        """Return the segments to read in the next step; empty once there is an answer."""
        if self._segments is None:
            self._advance(lambda: next(self._steps))
        return self._segments or []

    @property
    def cost(self) -> int:
        """The cost of the next step, in tokens read."""
        return sum(
            [
                len(each.tokens) + (SOFTMAX_COST + self._shares) * each.predicts + each.likeliest // SEARCHED
                for each in self.segments()
            ]
        )

    def send(self, readings: list[Reading]) -> None:
        """Continue with the readings of the segments."""
        if self.answer is None:
            self._advance(lambda: self._steps.send(readings))

    def output(self) -> Any:
        """Return the output of the last step: new parts, the answer, or None."""
        parts = [*self._parts]
        self._parts.clear()
        return Partial(parts, self.answer) if parts else self.answer

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
        tokenizer: Tokenizer,
        *,
        precision: Precision,
        cache: StateCache,
        chunk: int = CHUNK,
        observe_cache: ObserveCache = ignore,
        blocked: Set[str] = BLOCKED_WORDS,
        adaptation: Weights | None = None,
    ) -> None:
        """`observe_cache` is called after each step with the context tokens found in the cache and those read.

        `blocked`: case-folded words that are never suggested. `adaptation`: of requests that do not say whether they
        are adapted to the writer; None: not at all.
        """
        self.tokenizer = tokenizer
        self.precision = precision
        self._engine = engine
        self._cache = cache
        self._chunk = chunk
        self._observe_cache = observe_cache
        self._pace = Pace(UNIT_S, weight=MAX_STEP_COST)
        self._lookups: list[tuple[int, int]] = []  # of this step, per context: tokens cached and read
        after_end = Segment(engine.initial_state(), [tokenizer.end])
        self._start = engine.run([after_end])[0].state
        self._completer = Completer(tokenizer, self._start, cache, chunk, self._lookups)
        self._scorer = Scorer(tokenizer, self._start, chunk)
        self._blocked = blocked
        self._adaptation = adaptation
        self._histories = Histories(HISTORIES_BYTES, self._history_tokens)
        self._never = [tokenizer.end]
        if tokenizer.unknown is not None:  # of a closed vocabulary, in which each word is a token
            of_words = (token for token, text in enumerate(tokenizer.strings) if text.casefold() in blocked)
            self._never += [tokenizer.unknown, *of_words]

    @classmethod
    def open(
        cls, bundle: Bundle, precision: Precision, resources: Resources, *, chunk: int = CHUNK
    ) -> "LanguageModelPredictor":
        """Open a bundle's graphs of this precision. Raise BundleError if they can't be run."""
        engine = RecurrentEngine.open(bundle, precision, threads=resources.threads)
        tokenizer = resources.tokenizer(bundle, engine.vocabulary_size)
        return cls(
            engine,
            tokenizer,
            precision=precision,
            cache=StateCache(resources.cache_bytes),
            chunk=chunk,
            observe_cache=resources.observe_cache,
            blocked=resources.blocked,
            adaptation=Weights.of(bundle.manifest.calibration, bundle.folder),
        )

    def prepare(self, payload: Suggest | Score | Complete) -> Example:
        """Validate a payload; all reading is left to the steps. Raise InvalidField for a number out of its range."""
        if isinstance(payload, Complete):
            prompt, parts = read_prompt(payload.prompt, self.tokenizer), list[Part]()
            steps = self._completer.steps(payload, prompt, parts.append)
            return Example(steps, short=len(prompt.ids) <= SHORT_CONTEXT, parts=parts)
        if isinstance(payload, Suggest):
            require_ranges(payload, capped=False)
            prefix = self.tokenizer.prefix(payload.text, complete=payload.complete)
            writer = self._writer(payload, prefix)
            steps = self._suggest(payload, prefix.listed() if writer else prefix, writer)
            shares = writer.words // SHARES if writer else 0
            return Example(steps, short=len(prefix.ids) <= SHORT_CONTEXT, shares=shares)
        return Example(self._scorer.steps(payload))

    def step(self, examples: Sequence[Example]) -> list[Any]:
        """Run one step; return per example the answer, or None if it needs another step.

        The first example is always advanced, the others in their order while their cost stays within the limit of a
        step, at the model's pace: a keystroke, which comes before searches, does not wait for them.
        """
        started = time.perf_counter()
        costs = [example.cost or self._chunk for example in examples]  # text without words is work too
        room = MAX_STEP_COST / self._pace.slowness
        if costs and min(costs) <= LIGHT_COST:
            room = costs[0] + max(LIGHT_COST, SHORT_STEP_COST / self._pace.slowness)
        active, segments, spent = list[Example](), list[Segment](), 0
        for example, cost in zip(examples, costs, strict=True):
            if not active or spent + cost <= room:
                active.append(example)
                segments += example.segments()
                spent += cost
        readings = iter(self._engine.run(segments) if segments else [])
        for example in active:
            example.send(list(islice(readings, len(example.segments()))))
        self._pace.observe(STEP_COST + spent, time.perf_counter() - started)
        if self._lookups:
            self._observe_cache(*map(sum, zip(*self._lookups, strict=True)))
            self._lookups.clear()
        return [example.output() for example in examples]

    def fits_inline(self, examples: Sequence[Example]) -> bool:
        """Return whether one step over all examples costs at most INLINE_COST, at the model's pace."""
        room = INLINE_COST / self._pace.slowness
        for example in examples:
            if room <= 0 or not example.short:
                return False
            room -= example.cost
        return room >= 0

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """Return [text, log-probability] of each suggestion for `payload`, the fields of a Suggest.

        Its text is scored as well, so that every output of the graphs is computed once.
        """
        text = Score(payload["text"], per_token=True, alternatives=1)
        answer, _ = answer_all(self, [self.prepare(Suggest(**payload)), self.prepare(text)])
        return [[suggestion.text, suggestion.log_probability] for suggestion in answer.suggestions]

    def score_lines(self, text: Iterable[tuple[str, int]], mode: Mode = "document") -> TextScore:
        """Score a stream of lines with their breaks, each with its offset, in constant memory.

        A document's line may be cut before a single space and a word.
        """
        score: TextScore = answer_all(self, [Example(self._scorer.lines(text, mode))])[0]
        return score

    def _writer(self, payload: Suggest, prefix: Prefix) -> WriterCache | None:
        """Return the cache model of what was written before the next word, None if it is not wanted."""
        if payload.adapt is False or not (weights := self._adaptation or (Weights() if payload.adapt else None)):
            return None
        texts = [payload.history] if isinstance(payload.history, str) else payload.history
        return WriterCache(self.tokenizer, self._histories.tokens(texts), prefix.ids, weights)

    def _history_tokens(self, text: str) -> list[int]:
        return [*self.tokenizer.prefix(text, complete=False).ids, self.tokenizer.end]

    def _suggest(self, payload: Suggest, prefix: Prefix, writer: WriterCache | None) -> Steps:
        following = prefix.following(())
        beam = BEAM if following.whole else WORD_BEAM
        criteria = Criteria(max(payload.top_k, beam if payload.words > 1 else 0), self._never, self._blocked, writer)
        cached, entry = self._cache.longest(prefix.ids)
        self._lookups.append((cached, len(prefix.ids) - cached))
        reading = _known(entry, following) if cached == len(prefix.ids) else None
        if reading is None:
            state = self._start if entry is None else entry.state
            *chunks, last = _chunks(prefix.ids[cached:], self._chunk)
            for chunk in chunks:
                (reading,) = yield [Segment(state, chunk)]
                state = reading.state
            (reading,) = yield [request(state, last, prefix, criteria)]
            values = (None, None) if following.whole else (following.ids, reading.candidates)
            self._cache.put(prefix.ids, Entry(reading.state, *values))
        found: list[Word] = yield from next_words(prefix, reading, criteria, prefix.ids, self._cache)
        if payload.words > 1:
            ends = self.tokenizer.sentence_ends.tolist()
            found = yield from runs_of_words(prefix, found, criteria, payload.words, ends, prefix.ids, self._cache)
        return Suggestions(
            [
                Suggestion(text, math.exp(word.log_probability), word.log_probability)
                for word in found[: payload.top_k]
                if (text := prefix.text(word.tokens)) is not None
            ],
            len(prefix.ids),
            prefix.unknown_words,
            cached,
        )


def usage(answer: Suggestions | TextScore | Completion) -> dict[str, int]:
    """Return the tokens read or generated for an answer and, of a context, those that were cached."""
    if isinstance(answer, Completion):
        return {"tokens": answer.prompt_tokens + answer.completion_tokens, "cached": answer.cached_tokens}
    if isinstance(answer, TextScore):
        return {"tokens": answer.tokens}
    return {"tokens": answer.context_tokens, "cached": answer.cached_tokens}


def _known(entry: Entry | None, following: Following) -> Reading | None:
    """Return the reading of a context whose first tokens of the next word were read before, None for another."""
    values = entry.log_probabilities_of(following.ids) if entry else None
    return None if entry is None or values is None else Reading(entry.state, (), (), None, values)


def _chunks(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split into chunks of at most `size`; an empty sequence gives one empty chunk."""
    return [ids[start : start + size] for start in range(0, len(ids), size)] or [ids]
