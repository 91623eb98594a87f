"""Log-likelihood scores of texts and their tokens."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


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
    """The answer to a Score payload. Holds sums, so that scores can be pooled; `<eos>` counts as a token."""

    log_likelihood: float = 0.0  # nats
    log_likelihood_unknown: float = 0.0  # the unknown words' part of it
    tokens: int = 0
    sentences: int = 0
    unknown_tokens: int = 0
    characters: int = 0
    token_scores: list[TokenScore] | None = None

    @property
    def perplexity(self) -> float:
        """exp(-log-likelihood / tokens)."""
        return math.exp(-self.log_likelihood / self.tokens)

    @property
    def perplexity_excluding_unknown(self) -> float:
        """Perplexity over the known tokens alone, as KenLM reports it; an `<eos>` is always known."""
        known = self.log_likelihood - self.log_likelihood_unknown
        return math.exp(-known / (self.tokens - self.unknown_tokens))

    @property
    def cross_entropy(self) -> float:
        """Bits per token."""
        return -self.log_likelihood / self.tokens / math.log(2)

    @property
    def bits_per_character(self) -> float:
        """Bits per character of the request's text."""
        return -self.log_likelihood / self.characters / math.log(2)

    def __add__(self, other: "TextScore") -> "TextScore":
        """Return the score of both texts together, without token scores."""
        return TextScore(
            log_likelihood=self.log_likelihood + other.log_likelihood,
            log_likelihood_unknown=self.log_likelihood_unknown + other.log_likelihood_unknown,
            tokens=self.tokens + other.tokens,
            sentences=self.sentences + other.sentences,
            unknown_tokens=self.unknown_tokens + other.unknown_tokens,
            characters=self.characters + other.characters,
        )


def pooled(scores: Iterable[TextScore]) -> TextScore:
    """Return the score of all texts together: sums, not a mean of perplexities."""
    return sum(scores, TextScore())
