"""Completions of a prompt by a language model: choices of sampled tokens, with their text and log-probabilities."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from app.errors import InvalidField
from app.runtime.recurrent_engine import Floats, Likeliest, Reading, Segment
from app.runtime.sampling import Uniform, sample
from app.runtime.state_cache import Entry, StateCache
from app.text import Tokenizer

FinishReason: TypeAlias = Literal["stop", "length"]
Steps: TypeAlias = Generator[list[Segment], list[Reading], "Completion"]

LONG_PROMPT: Final = 2_000  # characters or tokens; a longer prompt is slow to prepare
INCOMPLETE: Final = "\ufffd"  # ends a text whose last character lacks bytes


@dataclass(frozen=True, slots=True)
class Complete:
    """A request for `n` continuations of a prompt; see POST /v1/completions."""

    bulk: ClassVar[bool] = False

    prompt: str | Sequence[int]  # a text, or token ids
    max_tokens: int = 16  # of each choice; 0 generates nothing
    temperature: float = 1.0  # 0 chooses the likeliest token
    top_p: float = 1.0
    seed: int = 0
    n: int = 1
    stop: Sequence[str] = ()  # a choice ends before the first of these
    logprobs: int | None = None  # likeliest tokens to return at each position; None: no log-probabilities
    echo: bool = False  # return the prompt too, in the first part of each choice
    ignore_eos: bool = False  # write the end of a sentence as a line break and go on

    @property
    def slow(self) -> bool:
        """True if preparing it would block the event loop for too long."""
        return len(self.prompt) > LONG_PROMPT


class ScoredToken(NamedTuple):
    """A token of a choice."""

    token: str
    offset: int  # of its first character in the choice's text
    log_probability: float | None  # nats; None where nothing precedes it
    likeliest: Sequence[tuple[str, float]] | None  # the likeliest tokens at its position


class Part(NamedTuple):
    """An addition to one choice."""

    choice: int
    text: str
    tokens: Sequence[ScoredToken]  # with log-probabilities requested
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to Complete."""

    parts: list[Part]  # of all choices, in the order in which they were generated
    prompt_tokens: int
    cached_tokens: int  # leading tokens of the prompt whose state was cached
    completion_tokens: int


class Prompt(NamedTuple):
    """A prompt that has been read as tokens."""

    text: str
    ids: list[int]
    offsets: list[int]


def read_prompt(prompt: str | Sequence[int], tokenizer: Tokenizer) -> Prompt:
    """Tokenize a prompt, or write its ids as text. Raise InvalidField for an id outside the vocabulary."""
    if isinstance(prompt, str):
        if prompt == tokenizer.strings[tokenizer.end]:
            return Prompt(prompt, [tokenizer.end], [0])
        ids, offsets = list[int](), list[int]()
        for found in tokenizer.encode(prompt):
            if found:
                ids.append(found.id)
                offsets.append(found.start)
        return Prompt(prompt, ids, offsets)
    size = len(tokenizer.strings)
    for index, token in enumerate(prompt):
        if not 0 <= token < size:
            raise InvalidField("prompt", f"expected ids from 0 to {size - 1}, found {token} at {index}")
    writer = Writer(tokenizer)
    offsets = [writer.write(token) for token in prompt]
    return Prompt(writer.text + writer.rest(), list(prompt), offsets)


def text_of(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Return the text of ids in Unicode; the bytes of an unpaired surrogate become U+FFFD, as others that are none."""
    return tokenizer.decode(ids).encode(errors="surrogatepass").decode(errors="replace")


class Writer:
    """The text of a growing sequence of tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt | None = None) -> None:
        """With a prompt, `text` starts empty and goes on where the prompt's text ends."""
        self.text = ""
        self._tokenizer = tokenizer
        self._breaks = prompt is not None  # an end is written as a line break
        self._tail = list(prompt.ids[-1:]) if prompt else []
        self._decoded = self._written = text_of(self._tail, tokenizer)
        self._spaced = not prompt or not prompt.text or prompt.text[-1].isspace()  # no space joins what comes next
        self._unread = bool(prompt) and not self._tail and not self._spaced  # text without tokens

    def write(self, token: int) -> int:
        """Append a token; return the offset in `text` at which it starts."""
        tokenizer = self._tokenizer
        self._tail.append(token)
        decoded = text_of(self._tail, tokenizer)
        complete = decoded.removesuffix(INCOMPLETE)
        appended = len(decoded) > len(self._decoded) and decoded.startswith(self._decoded)
        rest = len(self.rest()) if appended else 0  # before this token, which doesn't complete it
        piece = "\n" if self._breaks and token == tokenizer.end else complete[len(self._written) :]
        joined = piece.startswith(" ") and not tokenizer.strings[token].startswith(" ")
        if joined and self._spaced:
            piece, joined = piece[1:], False
        elif self._unread and piece and not piece[0].isspace():
            piece, joined = f" {piece}", True
        offset = len(self.text) + rest + joined
        self.text += piece
        if complete == decoded:
            self._tail = [token]
            self._decoded = self._written = text_of(self._tail, tokenizer)
        else:
            self._decoded, self._written = decoded, complete
        if piece:
            self._spaced, self._unread = piece[-1].isspace(), False
        return offset

    def rest(self) -> str:
        """Return the characters that lack bytes at the end."""
        return self._decoded[len(self._written) :]


@dataclass(eq=False)
class _Choice:
    """One continuation in progress."""

    index: int
    writer: Writer
    uniform: Uniform
    state: Floats
    token: int = 0  # the last one generated
    count: int = 0  # tokens generated
    sent: int = 0  # characters of the writer's text
    finish_reason: FinishReason | None = None


class Completer:
    """The generation of completions by one language model, as steps of its scheduler."""

    def __init__(
        self, tokenizer: Tokenizer, start: Floats, cache: StateCache, chunk: int, lookups: list[tuple[int, int]]
    ) -> None:
        """`start`: the state before a text; `chunk`: tokens of one prompt read in a step.

        `lookups` receives for each prompt the number of tokens that were cached, and of those that were read.
        """
        self._lookups = lookups
        self._tokenizer = tokenizer
        self._start = start
        self._cache = cache
        self._chunk = chunk
        never = () if tokenizer.unknown is None else (tokenizer.unknown,)
        self._never = never
        self._generable = np.delete(np.arange(len(tokenizer.strings)), never)

    def steps(self, payload: Complete, prompt: Prompt, emit: Callable[[Part], None]) -> Steps:
        """Read the prompt and generate the choices; `emit` receives each part as it becomes certain."""
        parts: list[Part] = []

        def add(part: Part) -> None:
            parts.append(part)
            emit(part)

        reading, cached, scored = yield from self._read(payload, prompt)
        for index in range(payload.n if payload.echo else 0):
            add(Part(index, prompt.text, scored))
        shift = len(prompt.text) if payload.echo else 0
        choices = [
            _Choice(index, Writer(self._tokenizer, prompt), Uniform(payload.seed, prompt.ids, index), reading.state)
            for index in range(payload.n)
        ]
        for choice in choices if payload.max_tokens == 0 else ():
            add(Part(choice.index, "", (), "length"))
        total, readings = 0, [reading] * payload.n
        active = choices if payload.max_tokens else []
        while active:
            for choice, found in zip(active, readings, strict=True):
                add(self._extended(choice, found, payload, shift))
            total += len(active)
            active = [choice for choice in active if choice.finish_reason is None]
            if active:
                readings = yield [self._segment(choice.state, [choice.token], payload) for choice in active]
        return Completion(parts, len(prompt.ids), cached, total)

    def _read(
        self, payload: Complete, prompt: Prompt
    ) -> Generator[list[Segment], list[Reading], tuple[Reading, int, list[ScoredToken]]]:
        """Read the prompt: return the last reading, the number of cached tokens, and the scores if requested."""
        started = prompt.ids[:1] == [self._tokenizer.end] and not isinstance(payload.prompt, str)
        is_end = payload.prompt == self._tokenizer.strings[self._tokenizer.end]
        ids = prompt.ids[1:] if started or is_end else prompt.ids
        skipped = len(prompt.ids) - len(ids)
        scored: list[ScoredToken] = []
        if payload.echo and payload.logprobs is not None:
            cached, state = 0, self._start
            scored = [ScoredToken(self._tokenizer.strings[self._tokenizer.end], 0, None, None)] * skipped
        else:
            cached, found = self._cache.longest(ids)
            state = self._start if found is None else found.state
            scored = []
        reading = Reading(state, (), (), None, None)
        for start in range(cached, max(len(ids), cached + 1), self._chunk):
            part = ids[start : start + self._chunk]
            is_last = start + self._chunk >= len(ids)
            segment = self._segment(state, part, payload) if is_last else Segment(state, part)
            if payload.echo and payload.logprobs is not None:
                segment = segment._replace(score=True, details=payload.logprobs)
            if part or segment.predicts:
                (reading,) = yield [segment]
            state = reading.state
            for index, (log_probability, details) in enumerate(zip(reading.scores, reading.details, strict=True)):
                offset = prompt.offsets[skipped + start + index]
                scored.append(self._scored(part[index], offset, log_probability, details.alternatives))
        self._cache.put(ids, Entry(state))
        self._lookups.append((cached, len(ids) - cached))
        return reading, cached, scored

    def _segment(self, state: Floats, tokens: Sequence[int], payload: Complete) -> Segment:
        """Return a segment with the outputs from which the next token is chosen and scored."""
        if payload.max_tokens == 0:
            return Segment(state, tokens)
        if payload.temperature:
            return Segment(state, tokens, likeliest=self._likeliest(payload), candidates=self._generable)
        return Segment(state, tokens, likeliest=max(1 + len(self._never), self._likeliest(payload)))

    def _likeliest(self, payload: Complete) -> int:
        return payload.logprobs + len(self._never) if payload.logprobs else 0

    def _extended(self, choice: _Choice, reading: Reading, payload: Complete, shift: int) -> Part:
        """Append the next token to a choice; return the text that has become certain, and the token if requested."""
        token, log_probability = self._next(choice, reading, payload)
        choice.token, choice.state = token, reading.state
        choice.count += 1
        ended = token == self._tokenizer.end and not payload.ignore_eos
        offset = len(choice.writer.text) if ended else choice.writer.write(token)
        tokens: list[ScoredToken] = []
        if payload.logprobs is not None:
            others = reading.likeliest if payload.logprobs else None
            known = Likeliest([], []) if others is None else others
            tokens = [self._scored(token, shift + offset, log_probability, known, payload.logprobs)]
        if ended or choice.count == payload.max_tokens:
            choice.writer.text += choice.writer.rest()
        text, stopped = _until_stop(choice.writer.text[choice.sent :], payload.stop)
        if ended or stopped:
            choice.finish_reason = "stop"
        elif choice.count == payload.max_tokens:
            choice.finish_reason = "length"
        if choice.finish_reason is None:
            text = text[: len(text) - _held_back(text, payload.stop)]
        choice.sent += len(text)
        return Part(choice.index, text, tokens, choice.finish_reason)

    def _next(self, choice: _Choice, reading: Reading, payload: Complete) -> tuple[int, float]:
        """Choose the next token; return it and its log-probability."""
        if not payload.temperature:
            assert reading.likeliest is not None
            likely = zip(*reading.likeliest, strict=True)
            return next(found for found in likely if found[0] not in self._never)
        assert reading.candidates is not None
        index = sample(reading.candidates, payload.temperature, payload.top_p, choice.uniform.at(choice.count))
        return int(self._generable[index]), float(reading.candidates[index])

    def _scored(
        self, token: int, offset: int, log_probability: float, likeliest: Likeliest, count: int | None = None
    ) -> ScoredToken:
        """Return a scored token; `count`: of a generated one, without those never generated."""
        found = list(zip(*likeliest, strict=True))
        if count is not None:
            found = [(other, value) for other, value in found if other not in self._never][:count]
        strings = self._tokenizer.strings
        return ScoredToken(strings[token], offset, log_probability, [(strings[other], value) for other, value in found])


def _until_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first match of a stop, and whether there is one."""
    first = min((at for each in stop if (at := text.find(each)) >= 0), default=-1)
    return (text, False) if first < 0 else (text[:first], True)


def _held_back(text: str, stop: Sequence[str]) -> int:
    """Return the number of characters at the end of the text that may start a stop."""
    longest = min(len(text), max(map(len, stop), default=0))
    return next((size for size in range(longest, 0, -1) if any(each.startswith(text[-size:]) for each in stop)), 0)
