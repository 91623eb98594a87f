"""The tokenizer protocol: raw text <-> normalised tokens with offsets <-> ids; the vocabulary."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]

END = "<eos>"
UNKNOWN = "<unk>"
_LINE = re.compile(r"([^\r\n]+)(?:\r\n?|\n)?|\r\n?|\n")
_WRITTEN_LINE = re.compile(r"(\S[^\r\n]*)")  # from a line's first character that is no space: the last took its line
_YIELD_EVERY = 16  # lines without tokens, about 1 us each, before who waits for a sentence is told


class Vocabulary:
    """The tokens a model knows; a token's id is its place. `<eos>` and `<unk>` are always among them."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """Raise ValueError for a repeated or missing token."""
        self.tokens = tuple(tokens)
        self.index = {token: place for place, token in enumerate(self.tokens)}
        if len(self.index) != len(self.tokens):
            raise ValueError(f"vocabulary: {len(self.tokens) - len(self.index)} tokens stand in it twice")
        for special in (END, UNKNOWN):
            if special not in self.index:
                raise ValueError(f"vocabulary: {special} is missing")

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
        """Ids of the tokens, that of `<unk>` for those not known."""
        index, unknown = self.index, self.unknown
        return [index.get(token, unknown) for token in tokens]


class Token(NamedTuple):
    """A normalised token and where it stands in the text as sent; an `<eos>` has start == end."""

    text: str
    start: int
    end: int


BLANK: Final[Iterator[Token]] = iter(())  # stands among sentences for lines without tokens


class Tokenizer(Protocol):
    """One corpus's conventions. The tokens of a chunk (a run of non-space characters) depend on that chunk alone."""

    keeps_blank_lines: bool  # whether a line without tokens is a sentence of its own, an `<eos>`

    def tokens(self, line: str, offset: int = 0) -> Iterator[Token]:
        """The tokens of one line without its line break, no `<eos>`; `offset` is where the line begins in its text.

        One at a time, since a line may be as long as a text.
        """
        ...

    def texts(self, line: str) -> list[str]:
        """The texts of `tokens(line)`, which are made sooner without their places."""
        ...

    def join(self, tokens: Sequence[str]) -> str:
        """A run of tokens as a person would type it."""
        ...

    def complete(self, text: str) -> "Completion":
        """The words that the last run of non-space characters of `text` may become, and what stands before them."""
        ...


@dataclass(frozen=True, slots=True)
class Completion:
    """A word being typed at the end of a text."""

    before: str  # the text up to the last run of non-space characters
    begun: list[Token]  # tokens of that run that stand before the word, such as the host of a clitic
    candidates: Ids | None  # of the words that it may become; None: any word
    typed: str  # the last run of non-space characters, as sent; it may begin before the word
    prefix: str  # the word's beginning, in the characters that the vocabulary is written in
    tokenizer: Tokenizer

    @property
    def context(self) -> list[Token]:
        """What stands before the word."""
        return [*context(self.before, self.tokenizer), *self.begun]

    @property
    def context_texts(self) -> list[str]:
        """The texts of `context`."""
        return [*context_texts(self.before, self.tokenizer), *(token.text for token in self.begun)]

    def text(self, tokens: Sequence[str]) -> str:
        """`tokens`, whose first is a candidate, as they would be typed on: always begins with `typed`."""
        first = self.tokenizer.join(tokens[:1])
        return self.word(first) + self.tokenizer.join(tokens)[len(first) :]

    def word(self, written: str) -> str:
        """The same of a candidate alone, as it is written elsewhere."""
        if not written.startswith(self.prefix):
            written = written.upper() if len(self.prefix) > 1 and self.prefix.isupper() else written.lower()
        return self.typed + written[len(self.prefix) :]


def lines(text: str, *, blank: bool = True) -> Iterator[tuple[str, int]]:
    r"""Each line without its break, and its offset. Only \r\n, \n and \r break; a final break opens no further line.

    Where the `blank` are not wanted they cost next to nothing, and a line begins at its first character but for space.
    """
    for match in (_LINE if blank else _WRITTEN_LINE).finditer(text):
        yield match[1] or "", match.start()


def sentences(lines: Iterable[tuple[str, int]], tokenizer: Tokenizer) -> Iterator[Iterator[Token]]:
    """The tokens of each line and the `<eos>` at its end, one line and one token at a time.

    After so many lines without tokens comes `BLANK`, so that nobody waits without limit for the next that has some.
    """
    wordless = 0
    for line, offset in lines:
        tokens = tokenizer.tokens(line, offset)
        first = list(islice(tokens, 1))
        if first or tokenizer.keeps_blank_lines:
            end = offset + len(line)
            yield chain(first, tokens, [Token(END, end, end)])
        else:
            wordless += 1
            if wordless % _YIELD_EVERY == 0:
                yield BLANK


def context(text: str, tokenizer: Tokenizer) -> list[Token]:
    """The tokens before the next word: those of all sentences, the last not ended unless `text` ends with a break."""
    tokens = list(chain.from_iterable(sentences(lines(text, blank=tokenizer.keeps_blank_lines), tokenizer)))
    if tokens and tokens[-1].start == len(text):  # the `<eos>` of a last line that goes on
        tokens.pop()
    return tokens


def context_texts(text: str, tokenizer: Tokenizer) -> list[str]:
    """The texts of `context`."""
    found: list[str] = []
    for line, offset in lines(text, blank=tokenizer.keeps_blank_lines):
        texts = tokenizer.texts(line)
        if texts or tokenizer.keeps_blank_lines:
            goes_on = offset + len(line) == len(text)
            found += texts if goes_on else [*texts, END]
    return found


def split_typed(text: str) -> tuple[str, str]:
    """What stands before the last run of non-space characters, and that run; it is empty after a space."""
    if not text or text[-1].isspace():
        return text, ""
    typed = text.rsplit(maxsplit=1)[-1]
    return text[: len(text) - len(typed)], typed
