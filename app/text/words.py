"""Tokenizers of closed vocabularies: one token a word, `<unk>` for all others, `<eos>` at the end of a line."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby, islice
from typing import ClassVar, Final, NamedTuple, Self

import numpy as np

from app.errors import CorpusError
from app.text.tokenizer import Flags, Following, Ids, Token

END = "<eos>"
UNKNOWN = "<unk>"
WINDOW: Final = 1024  # characters: searched for words in about a millisecond at most
_SPACE = re.compile(r"\s")
_LINE = re.compile(r"([^\r\n]+)(?:\r\n?|\n)?|\r\n?|\n")
_WRITTEN_LINE = re.compile(r"(\S[^\r\n]*)")  # from a line's first character that is no space: the last took its line
_YIELD_EVERY = 64  # lines without tokens, about 1 us each, after which `sentences` yields BLANK


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


class Word(NamedTuple):
    """A normalised word and its character offsets in the original text; an `<eos>` has start == end."""

    text: str
    start: int
    end: int


_ANY: Final = Following(None, whole=True)
PAUSE: Final = Word("", -1, -1)  # marks a number of characters among words
BLANK: Final[Iterator[Word]] = iter(())  # marks lines without words among sentences


class WordTokenizer(ABC):
    """A `Tokenizer` with one token a word. The words of a chunk (a run of non-space characters) depend on it alone."""

    FILE: ClassVar[str] = "vocabulary.txt"
    keeps_blank_lines: ClassVar[bool]  # a line without words is a sentence of its own, an `<eos>`

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.strings = vocabulary.tokens
        self.end = vocabulary.end
        self.unknown: int | None = vocabulary.unknown
        self.sentence_ends: Ids = np.array([vocabulary.end])

    @classmethod
    def parse(cls, content: str) -> Self:
        """Read a vocabulary.txt, a token a line."""
        return cls(Vocabulary(content.split("\n")))

    @abstractmethod
    def tokens(self, line: str, offset: int = 0) -> Iterator[Word]:
        """Yield the words of one line without its line break, no `<eos>`; `offset` is the line's start in its text.

        Lazy, since a line may be as long as a text: after a number of characters it may yield `PAUSE`, so that the
        caller regains control in bounded time.
        """

    @abstractmethod
    def texts(self, line: str) -> list[str]:
        """Return the texts of `tokens(line)`; faster, as it computes no offsets."""

    @abstractmethod
    def join(self, tokens: Sequence[str]) -> str:
        """Return a run of words as a person would type it."""

    @abstractmethod
    def complete(self, text: str) -> "Completion":
        """Return the context before the last run of non-space characters of `text`, and the words it may become."""

    def encode(
        self,
        text: str,
        offset: int = 0,
        *,
        ended: bool = False,
        inside_line: bool = False,  # noqa: ARG002  # a chunk's words depend on it alone
    ) -> Iterator[Token | None]:
        """Yield the tokens of a text; see `Tokenizer`."""
        for sentence in self.sentences(text):
            for token in sentence:
                if token is None:
                    yield None
                elif ended or token.start < len(text):  # else the `<eos>` of an unfinished last line
                    yield token._replace(start=token.start + offset, end=token.end + offset) if offset else token

    def sentences(self, text: str) -> Iterator[Iterator[Token | None]]:
        """Yield the tokens of each line; see `Tokenizer`."""
        for words in sentences(lines(text, blank=self.keeps_blank_lines), self):
            yield iter([None]) if words is BLANK else map(self._token, words)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words as a person would type them, a line break for each `<eos>`."""
        return "".join(
            "\n" * len(list(run)) if end else self.join([self.strings[token] for token in run])
            for end, run in groupby(ids, self.end.__eq__)
        )

    def begins(self, ids: Ids) -> Flags:
        """Return true for every token: each is a word."""
        return np.ones(len(ids), np.bool_)

    def prefix(self, text: str, *, complete: bool) -> "WordPrefix":
        """Return the context of the next word; see `Tokenizer`."""
        completion = self.complete(text) if complete else None
        ids = self.vocabulary.ids(completion.context_texts if completion else context_texts(text, self))
        unknown: list[str] = []
        if self.unknown in ids:
            words = completion.context if completion else context(text, self)
            found = (word for word, number in zip(words, ids, strict=True) if number == self.unknown)
            unknown = list(dict.fromkeys(text[word.start : word.end] for word in found))
        if completion is None:
            return WordPrefix(ids, unknown, self, None, _ANY)
        candidates = self.suggestable if completion.candidates is None else np.sort(completion.candidates)
        return WordPrefix(ids, unknown, self, completion, Following(candidates, whole=True))

    @cached_property
    def suggestable(self) -> Ids:
        """The ids of all words."""
        return np.delete(np.arange(len(self.strings)), [self.end, self.vocabulary.unknown])

    @cached_property
    def listed(self) -> Following:
        """All words, and the end of a sentence."""
        ids = np.delete(np.arange(len(self.strings)), self.vocabulary.unknown)
        end = int(np.searchsorted(ids, self.end))
        return Following(ids, whole=True, stops=slice(end, end + 1))

    @cached_property
    def written(self) -> Sequence[str]:
        """Each token as a person would type it."""
        return [self.join([token]) for token in self.strings]

    def _token(self, word: Word) -> Token | None:
        if word is PAUSE:
            return None
        return Token(self.vocabulary.index.get(word.text, self.vocabulary.unknown), *word)


@dataclass(slots=True)
class Completion:
    """A word being typed at the end of a text."""

    before: str  # the text up to the last run of non-space characters
    started: list[Word]  # words of that run before the one being typed, such as the host of a clitic
    candidates: Ids | None  # of the words that it may become; None: any word
    typed: str  # the last run of non-space characters as typed; may start before the word
    prefix: str  # the typed part of the word, in the vocabulary's characters
    tokenizer: WordTokenizer

    @property
    def context(self) -> list[Word]:
        """The words before the one being typed."""
        return [*context(self.before, self.tokenizer), *self.started]

    @property
    def context_texts(self) -> list[str]:
        """The texts of `context`."""
        return [*context_texts(self.before, self.tokenizer), *(word.text for word in self.started)]

    def text(self, tokens: Sequence[str]) -> str:
        """Return `tokens`, the first a candidate, as a continuation of `typed`; always starts with `typed`."""
        first = self.tokenizer.join(tokens[:1])
        return self.word(first) + self.tokenizer.join(tokens)[len(first) :]

    def word(self, written: str) -> str:
        """Return one candidate, given as it is usually written, as a continuation of `typed`."""
        if not written.startswith(self.prefix):
            written = written.upper() if len(self.prefix) > 1 and self.prefix.isupper() else written.lower()
        return self.typed + written[len(self.prefix) :]


@dataclass(slots=True)
class WordPrefix:
    """The `Prefix` of a text whose words are one token each."""

    ids: list[int]
    unknown_words: list[str]
    tokenizer: WordTokenizer
    completion: Completion | None
    words: Following  # that may be the next one
    later: Following = _ANY  # that may be the one after it

    @property
    def typed(self) -> bool:
        """True for a word to complete, even if none of its characters is typed yet."""
        return self.completion is not None

    def following(self, tokens: tuple[int, ...]) -> Following:  # noqa: ARG002
        """Return the words that may be the next one."""
        return self.words

    def after(self) -> "WordPrefix":
        """Return no constraint."""
        return WordPrefix([], [], self.tokenizer, None, self.later, self.later)

    def listed(self) -> "WordPrefix":
        """Return the same constraint with all words listed."""
        every = self.tokenizer.listed
        return replace(self, words=self.words if self.typed else every, later=every)

    def text(self, tokens: Sequence[int]) -> str | None:
        """Return the words as a person would type them, the first as the completion of its typed part."""
        if len(tokens) == 1:
            written = self.tokenizer.written[tokens[0]]
            return self.completion.word(written) if self.completion else written
        words = [self.tokenizer.strings[token] for token in tokens]
        return self.completion.text(words) if self.completion else self.tokenizer.join(words)


def lines(text: str, *, blank: bool = True) -> Iterator[tuple[str, int]]:
    r"""Yield each line without its break, and its offset. Only \r\n, \n and \r break; a final break starts no new line.

    With `blank` false, blank lines are skipped at next to no cost, and a line starts at its first non-space character.
    """
    for match in (_LINE if blank else _WRITTEN_LINE).finditer(text):
        yield match[1] or "", match.start()


def windows(text: str, size: int = WINDOW) -> Iterator[tuple[int, int]]:
    """Yield the bounds of consecutive parts of at least `size` characters that cut no run of non-space characters."""
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + size)
        end = space.start() if space else len(text)
        yield start, end
        start = end


def sentences(lines: Iterable[tuple[str, int]], tokenizer: WordTokenizer) -> Iterator[Iterator[Word]]:
    """Yield the words of each line and the `<eos>` at its end, lazily.

    Yields `BLANK` after a number of characters or lines without words, so that the caller regains control in bounded
    time.
    """
    blank = 0
    for line, offset in lines:
        words = tokenizer.tokens(line, offset)
        first = list(islice(words, 1))
        while first and first[0] is PAUSE:
            yield BLANK
            first = list(islice(words, 1))
        if first or tokenizer.keeps_blank_lines:
            end = offset + len(line)
            yield chain(first, words, [Word(END, end, end)])
        else:
            blank += 1
            if blank % _YIELD_EVERY == 0:
                yield BLANK


def context(text: str, tokenizer: WordTokenizer) -> list[Word]:
    """Return the words before the next one; the last line ends with `<eos>` only if `text` ends with a break."""
    found = chain.from_iterable(sentences(lines(text, blank=tokenizer.keeps_blank_lines), tokenizer))
    words = [word for word in found if word is not PAUSE]
    if words and words[-1].start == len(text):  # the `<eos>` of an unfinished last line
        words.pop()
    return words


def context_texts(text: str, tokenizer: WordTokenizer) -> list[str]:
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
