"""Log-likelihood scores of texts and their tokens."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Self

from pydantic import ConfigDict, Field, WithJsonSchema

from app.runtime.fields import ANSWER, LogProbability
from app.text.words import windows

Mean = Annotated[float, WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]})]  # NaN is encoded as null


@dataclass(slots=True)
class Alternative:
    """A likely token at the position of another."""

    token: str
    log_probability: LogProbability


@dataclass(slots=True)
class TokenScore:
    """The log-probability of one token given those before it."""

    token: Annotated[str, Field(description="The normalised token; `<eos>` at the end of a sentence.")]
    start: Annotated[int, Field(description="Offset in characters of the text as sent.")]
    end: Annotated[int, Field(description="Offset of the end; that of an `<eos>` is its start.")]
    log_probability: LogProbability
    rank: Annotated[int, Field(description="Rank by probability; 1 is the likeliest.")]
    unknown: Annotated[bool, Field(description="The token is outside the vocabulary and was scored as `<unk>`.")]
    alternatives: list[Alternative]


@dataclass(slots=True)
class TextScore:
    """The answer to a Score payload: sums, which can be pooled, and means; the end of a sentence is a token.

    The means are NaN for a text that has nothing to divide by, such as one without tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ANSWER

    perplexity: Annotated[Mean, Field(description="exp(-log_likelihood / tokens); null without tokens.")] = math.nan
    perplexity_excluding_unknown: Annotated[
        Mean, Field(description="Perplexity of the tokens in the vocabulary; null if there are none.")
    ] = math.nan
    perplexity_open: Annotated[
        Mean,
        Field(
            description="Perplexity in which unknown words cost what their letters cost, to sort texts by; "
            "null without tokens."
        ),
    ] = math.nan
    tokens: Annotated[int, Field(description="Number of tokens, each `<eos>` included.")] = 0
    sentences: int = 0
    unknown_tokens: int = 0
    characters: int = 0
    bytes: Annotated[int, Field(description="Length of the text in UTF-8.")] = 0
    words: Annotated[int, Field(description="Number of words, separated by white space.")] = 0
    log_likelihood: Annotated[float, Field(description="Nats.")] = 0.0
    log_likelihood_unknown: Annotated[float, Field(exclude=True)] = 0.0  # the unknown words' part of it
    log_likelihood_spelling: Annotated[float, Field(exclude=True)] = 0.0  # of unknown words' letters, no part of it
    cross_entropy: Annotated[Mean, Field(description="Bits per token; null without tokens.")] = math.nan
    bits_per_character: Mean = math.nan
    bits_per_byte: Annotated[Mean, Field(description="Comparable between models; null without tokens.")] = math.nan
    word_perplexity: Annotated[
        Mean, Field(description="exp(-log_likelihood / words), comparable between models; null without words.")
    ] = math.nan
    token_scores: Annotated[list[TokenScore] | None, Field(description="Null unless per_token is set.")] = None

    def __post_init__(self) -> None:
        """Compute the means."""
        known, known_tokens = self.log_likelihood - self.log_likelihood_unknown, self.tokens - self.unknown_tokens
        self.perplexity = _perplexity(self.log_likelihood, self.tokens)
        self.perplexity_excluding_unknown = _perplexity(known, known_tokens)
        self.perplexity_open = _perplexity(self.log_likelihood + self.log_likelihood_spelling, self.tokens)
        self.word_perplexity = _perplexity(self.log_likelihood, self.words)
        self.cross_entropy = self._bits_per(self.tokens)
        self.bits_per_character = self._bits_per(self.characters)
        self.bits_per_byte = self._bits_per(self.bytes)

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


_SUMS = [each.name for each in fields(TextScore) if each.default == 0]


def pooled(scores: Iterable[TextScore]) -> TextScore:
    """Return the score of all texts together: sums, not a mean of perplexities."""
    return sum(scores, TextScore())


def _perplexity(log_likelihood: float, count: int) -> float:
    try:
        return math.exp(-log_likelihood / count) if count else math.nan
    except OverflowError:
        return math.inf
