"""Log-likelihood scores of texts and their tokens."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

from app.text.words import windows


class TokenScore(NamedTuple):
    """The score of one token; `start` and `end` are character offsets into the request's text."""

    token: str
    start: int
    end: int
    log_probability: float
    rank: int
    unknown: bool
    alternatives: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class TextScore:
    """The answer to a Score payload. Holds sums, so that scores can be pooled; the end of a sentence is a token.

    The means are NaN for a text that has nothing to divide by, such as one without tokens.
    """

    log_likelihood: float = 0.0  # nats
    log_likelihood_unknown: float = 0.0  # the unknown words' part of it
    tokens: int = 0
    sentences: int = 0
    unknown_tokens: int = 0
    characters: int = 0
    bytes: int = 0  # of UTF-8
    words: int = 0  # separated by white space
    token_scores: list[TokenScore] | None = None

    @property
    def perplexity(self) -> float:
        """exp(-log-likelihood / tokens)."""
        return _perplexity(self.log_likelihood, self.tokens)

    @property
    def perplexity_excluding_unknown(self) -> float:
        """Perplexity over the known tokens alone, as KenLM reports it."""
        return _perplexity(self.log_likelihood - self.log_likelihood_unknown, self.tokens - self.unknown_tokens)

    @property
    def word_perplexity(self) -> float:
        """exp(-log-likelihood / words): comparable between tokenizers, unlike `perplexity`."""
        return _perplexity(self.log_likelihood, self.words)

    @property
    def cross_entropy(self) -> float:
        """Bits per token."""
        return self._bits_per(self.tokens)

    @property
    def bits_per_character(self) -> float:
        """Bits per character of the request's text."""
        return self._bits_per(self.characters)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the request's text in UTF-8."""
        return self._bits_per(self.bytes)

    @classmethod
    def unscored(cls, text: str) -> Self:
        """Return the sizes of a text, to add to the score of its tokens."""
        size = len(text.encode("utf-8", "surrogatepass"))
        return cls(
            characters=len(text), bytes=size, words=sum(len(text[start:end].split()) for start, end in windows(text))
        )

    def __add__(self, other: "TextScore") -> "TextScore":
        """Return the score of both texts together, without token scores."""
        return TextScore(**{name: getattr(self, name) + getattr(other, name) for name in _SUMS})

    def _bits_per(self, count: int) -> float:
        return -self.log_likelihood / count / math.log(2) if self.tokens and count else math.nan


_SUMS = [field.name for field in fields(TextScore) if field.name != "token_scores"]


def pooled(scores: Iterable[TextScore]) -> TextScore:
    """Return the score of all texts together: sums, not a mean of perplexities."""
    return sum(scores, TextScore())


def _perplexity(log_likelihood: float, count: int) -> float:
    try:
        return math.exp(-log_likelihood / count) if count else math.nan
    except OverflowError:
        return math.inf
