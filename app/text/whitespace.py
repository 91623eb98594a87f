"""The whitespace tokenizer, for corpora that come tokenized, such as WikiText."""

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from app.text.word_list import WordList
from app.text.words import END, UNKNOWN, Completion, Vocabulary, Word, WordTokenizer, split_typed

_CHUNK = re.compile(r"\S+")


class Whitespace(WordTokenizer):
    """Splitting at whitespace, for corpora that come tokenized, such as WikiText."""

    keeps_blank_lines: ClassVar[bool] = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        words = vocabulary.index.items()
        self._words = WordList((token, number) for token, number in words if token not in (END, UNKNOWN))

    def tokens(self, line: str, offset: int = 0) -> Iterator[Word]:
        """Yield the chunks of the line."""
        for match in _CHUNK.finditer(line):
            yield Word(match[0], offset + match.start(), offset + match.end())

    def texts(self, line: str) -> list[str]:
        """Return the chunks of the line."""
        return line.split()

    def join(self, tokens: Sequence[str]) -> str:
        """Join the tokens with spaces."""
        return " ".join(tokens)

    def complete(self, text: str) -> Completion:
        """Complete the last chunk, case-sensitively."""
        before, typed = split_typed(text)
        candidates = self._words.starting(typed) if typed else None
        return Completion(before, [], candidates, typed, typed, self)
