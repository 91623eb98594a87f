"""Scoring of texts by a language model, as steps of its scheduler."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field, StrictBool, StrictInt

from app.runtime.fields import PAYLOAD, WHOLE, Text
from app.runtime.recurrent_engine import Details, Floats, Reading, Segment
from app.runtime.scores import Alternative, TextScore, TokenScore
from app.text import Token, Tokenizer
from app.text.spelling import Spelling

Mode: TypeAlias = Literal["document", "sentence"]
Steps: TypeAlias = Generator[list[Segment], list[Reading], TextScore]

SENTENCES = 8  # sentences of one text read in parallel, half a chunk of each per step
LONG_TEXT = 10_000  # characters; a longer text is slow to prepare
LONG_LINES = 1_000  # line breaks; more are slow to prepare: each line is searched for words


@dataclass(frozen=True, slots=True)
class Score:
    """A request to score one text."""

    __pydantic_config__: ClassVar[ConfigDict] = PAYLOAD
    bulk: ClassVar[bool] = True

    text: Text
    mode: Annotated[
        Mode,
        Field(description="document: a sentence is scored given the sentences before it; sentence: each alone."),
    ] = "document"
    per_token: Annotated[StrictBool, Field(description="Return the score of each token.")] = False
    alternatives: Annotated[
        StrictInt,
        Field(ge=0, le=10, description="With per_token: number of likeliest tokens returned at each position."),
        WHOLE,
    ] = 0

    @property
    def slow(self) -> bool:
        """True if preparing it would block the event loop for too long."""
        return len(self.text) > LONG_TEXT or self.text.count("\n") + self.text.count("\r") > LONG_LINES


class Scorer:
    """The scores of texts by one language model."""

    def __init__(self, tokenizer: Tokenizer, start: Floats, chunk: int) -> None:
        """`start`: the state before a text; `chunk`: tokens of one sequence read in a step."""
        self._tokenizer = tokenizer
        self._start = start
        self._chunk = chunk
        if tokenizer.unknown is not None:
            specials = (tokenizer.end, tokenizer.unknown)
            self._spelling = Spelling(text for token, text in enumerate(tokenizer.strings) if token not in specials)

    def steps(self, payload: Score) -> Steps:
        """Score one text."""
        tokenizer, text = self._tokenizer, payload.text
        sentences = payload.mode == "sentence"
        streams = tokenizer.sentences(text) if sentences else iter([tokenizer.encode(text, ended=True)])
        return self._score(streams, payload, TextScore.unscored(text))

    def lines(self, text: Iterable[tuple[str, int]], mode: Mode) -> Steps:
        """Score a stream of lines with their breaks, each with its offset, in constant memory."""
        sizes = TextScore()

        def counted() -> Iterator[tuple[str, int]]:
            nonlocal sizes
            for line, offset in text:
                sizes += TextScore.unscored(line)
                yield line, offset

        tokens = (
            iter([self._encoded(counted())])
            if mode == "document"
            else chain.from_iterable(self._tokenizer.sentences(line) for line, _ in counted())
        )
        score = yield from self._score(tokens, Score("", mode), sizes)
        return score + sizes

    def _encoded(self, parts: Iterable[tuple[str, int]]) -> Iterator[Token | None]:
        """Yield the tokens of a text's parts, each with its offset, and the end of the last."""
        part, offset, count, inside, unfinished = "", 0, 0, False, False
        for part, offset in parts:
            count, inside, unfinished = 0, unfinished, not part.endswith("\n")
            for count, token in enumerate(self._tokenizer.encode(part, offset, inside_line=inside), 1):  # noqa: B007
                yield token
        yield from islice(self._tokenizer.encode(part, offset, ended=True, inside_line=inside), count, None)

    def _score(self, streams: Iterator[Iterator[Token | None]], payload: Score, sizes: TextScore) -> Steps:
        details = payload.alternatives if payload.per_token else None
        total, kept = sizes, list[TokenScore]()
        while group := [_Stream(tokens, self._start) for tokens in islice(streams, SENTENCES)]:
            most = self._chunk if len(group) == 1 else -(-self._chunk // 2)
            while taken := [(stream, some) for stream in group if (some := _chunk(stream.tokens, most))]:
                active = [(stream, tokens) for stream, some in taken if (tokens := [*filter(None, some)])]
                ids = [[token.id for token in chunk] for _, chunk in active]
                readings = yield [
                    Segment(stream.state, chunk_ids, score=True, details=details)
                    for (stream, _), chunk_ids in zip(active, ids, strict=True)
                ]
                for (stream, chunk), chunk_ids, reading in zip(active, ids, readings, strict=True):
                    stream.state = reading.state
                    stream.score += self._sums(chunk, chunk_ids, reading.scores)
                    stream.kept += map(self._token_score, chunk, reading.scores, reading.details)
            for stream in group:
                total += stream.score
                kept += stream.kept
        return replace(total, token_scores=kept) if payload.per_token else total

    def _sums(self, tokens: Sequence[Token], ids: Sequence[int], scores: Sequence[float]) -> TextScore:
        unknown = self._tokenizer.unknown
        lost = [at for at, token in enumerate(ids) if token == unknown] if unknown in ids else []
        return TextScore(
            log_likelihood=sum(scores),
            log_likelihood_unknown=sum(scores[at] for at in lost),
            log_likelihood_spelling=sum(self._spelling.log_probability(tokens[at].text) for at in lost),
            tokens=len(ids),
            sentences=ids.count(self._tokenizer.end),
            unknown_tokens=len(lost),
        )

    def _token_score(self, token: Token, log_probability: float, details: Details) -> TokenScore:
        others = zip(*details.alternatives, strict=True)
        alternatives = [Alternative(self._tokenizer.strings[other], value) for other, value in others]
        unknown = token.id == self._tokenizer.unknown
        return TokenScore(token.text, token.start, token.end, log_probability, details.rank, unknown, alternatives)


def _chunk(tokens: Iterator[Token | None], most: int) -> list[Token | None]:
    """Take the tokens of a step: `most`, or fewer up to a None, which stands for about a millisecond without one."""
    chunk = []
    for token in islice(tokens, most):
        chunk.append(token)
        if token is None:
            break
    return chunk


@dataclass(eq=False, slots=True)
class _Stream:
    """A sequence being scored: its remaining tokens, the current state and the score so far."""

    tokens: Iterator[Token | None]
    state: Floats
    score: TextScore = field(default_factory=TextScore)
    kept: list[TokenScore] = field(default_factory=list)
