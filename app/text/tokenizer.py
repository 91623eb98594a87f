"""The tokenizer protocol: raw text <-> normalised tokens with offsets <-> ids; the vocabulary."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from app.errors import CorpusError

Ids: TypeAlias = npt.NDArray[np.int64]

END = "<eos>"
UNKNOWN = "<unk>"
_LINE = re.compile(r"([^\r\n]+)(?:\r\n?|\n)?|\r\n?|\n")
_WRITTEN_LINE = re.compile(r"(\S[^\r\n]*)")  # from a line's first character that is no space: the last took its line
_YIELD_EVERY = 16  # lines without tokens, about 1 us each, after which `sentences` yields BLANK


class Vocabulary:
    """A model's tokens; a token's id is its index. `<eos>` and `<unk>` are always among them."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """Raise ValueError for a repeated or missing token."""
        self.tokens = tuple(tokens)
        self.index = {token: number for number, token in enumerate(self.tokens)}
        if len(self.index) != len(self.tokens):
            raise ValueError(
                f"vocabulary: expected distinct tokens, found {len(self.tokens) - len(self.index)} duplicates"
            )
        for special in (END, UNKNOWN):
            if special not in self.index:
                raise ValueError(f"vocabulary: expected {special} among the tokens, found none")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def end(self) -> int:
        """The id of `<eos>`."""
        return self.index[END]

    @cached_property
    def unknown(self) -> int:
        """The id of `<unk>`."""
        return self.index[UNKNOWN]

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the tokens' ids, that of `<unk>` for unknown tokens."""
        index, unknown = self.index, self.unknown
        return [index.get(token, unknown) for token in tokens]

    def file_content(self) -> str:
        """Return the content of vocabulary.txt, a token a line; raise CorpusError for a token with a line break."""
        for token in self.tokens:
            if "\n" in token or "\r" in token:
                raise CorpusError(f"vocabulary: expected tokens without line breaks, found {token!r}")
        return "\n".join(self.tokens)


class Token(NamedTuple):
    """A normalised token and its character offsets in the original text; an `<eos>` has start == end."""

    text: str
    start: int
    end: int


BLANK: Final[Iterator[Token]] = iter(())  # marks lines without tokens among sentences


class Tokenizer(Protocol):
    """The conventions of one corpus. The tokens of a chunk (a run of non-space characters) depend on it alone."""

    keeps_blank_lines: bool  # a line without tokens is a sentence of its own, an `<eos>`

    def tokens(self, line: str, offset: int = 0) -> Iterator[Token]:
        """Yield the tokens of one line without its line break, no `<eos>`; `offset` is the line's start in its text.

        Lazy, since a line may be as long as a text.
        """
        ...

    def texts(self, line: str) -> list[str]:
        """Return the texts of `tokens(line)`; faster, as it computes no offsets."""
        ...

    def join(self, tokens: Sequence[str]) -> str:
        """Return a run of tokens as a person would type it."""
        ...

    def complete(self, text: str) -> "Completion":
        """Return the context before the last run of non-space characters of `text`, and the words it may become."""
        ...


@dataclass(frozen=True, slots=True)
class Completion:
    """A word being typed at the end of a text."""

    before: str  # the text up to the last run of non-space characters
    started: list[Token]  # tokens of that run before the word, such as the host of a clitic
    candidates: Ids | None  # of the words that it may become; None: any word
    typed: str  # the last run of non-space characters as typed; may start before the word
    prefix: str  # the typed part of the word, in the vocabulary's characters
    tokenizer: Tokenizer

    @property
    def context(self) -> list[Token]:
        """The tokens before the word."""
        return [*context(self.before, self.tokenizer), *self.started]

    @property
    def context_texts(self) -> list[str]:
        """The texts of `context`."""
        return [*context_texts(self.before, self.tokenizer), *(token.text for token in self.started)]

    def text(self, tokens: Sequence[str]) -> str:
        """Return `tokens`, the first a candidate, as a continuation of `typed`; always starts with `typed`."""
        first = self.tokenizer.join(tokens[:1])
        return self.word(first) + self.tokenizer.join(tokens)[len(first) :]

    def word(self, written: str) -> str:
        """Return one candidate, given as it is usually written, as a continuation of `typed`."""
        if not written.startswith(self.prefix):
            written = written.upper() if len(self.prefix) > 1 and self.prefix.isupper() else written.lower()
        return self.typed + written[len(self.prefix) :]


def lines(text: str, *, blank: bool = True) -> Iterator[tuple[str, int]]:
    r"""Yield each line without its break, and its offset. Only \r\n, \n and \r break; a final break starts no new line.

    With `blank` false, blank lines are skipped at next to no cost, and a line starts at its first non-space character.
    """
    for match in (_LINE if blank else _WRITTEN_LINE).finditer(text):
        yield match[1] or "", match.start()


def sentences(lines: Iterable[tuple[str, int]], tokenizer: Tokenizer) -> Iterator[Iterator[Token]]:
    """Yield the tokens of each line and the `<eos>` at its end, lazily.

    Yields `BLANK` after a number of lines without tokens, so that the caller regains control in bounded time.
    """
    blank = 0
    for line, offset in lines:
        tokens = tokenizer.tokens(line, offset)
        first = list(islice(tokens, 1))
        if first or tokenizer.keeps_blank_lines:
            end = offset + len(line)
            yield chain(first, tokens, [Token(END, end, end)])
        else:
            blank += 1
            if blank % _YIELD_EVERY == 0:
                yield BLANK


def context(text: str, tokenizer: Tokenizer) -> list[Token]:
    """Return the tokens before the next word; the last line ends with `<eos>` only if `text` ends with a break."""
    tokens = list(chain.from_iterable(sentences(lines(text, blank=tokenizer.keeps_blank_lines), tokenizer)))
    if tokens and tokens[-1].start == len(text):  # the `<eos>` of an unfinished last line
        tokens.pop()
    return tokens


def context_texts(text: str, tokenizer: Tokenizer) -> list[str]:
    """Return the texts of `context`."""
    found: list[str] = []
    for line, offset in lines(text, blank=tokenizer.keeps_blank_lines):
        texts = tokenizer.texts(line)
        if texts or tokenizer.keeps_blank_lines:
            unfinished = offset + len(line) == len(text)
            found += texts if unfinished else [*texts, END]
    return found


def split_typed(text: str) -> tuple[str, str]:
    """Split off the last run of non-space characters, which is empty after a space."""
    if not text or text[-1].isspace():
        return text, ""
    typed = text.rsplit(maxsplit=1)[-1]
    return text[: len(text) - len(typed)], typed
