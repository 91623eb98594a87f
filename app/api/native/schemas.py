"""Requests and answers of the native API: pydantic models for requests, TypedDicts for answers."""

from typing import Annotated, Literal, NotRequired, Self

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from app.api.http.fields import Count, LogProbability, ModelName, Probability, RequestModel, Text
from app.errors import InvalidField


class NextWord(RequestModel):
    """A request for suggestions of the next words of a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "The company said its third-quarter", "top_k": 3},
                {"text": "shares of the comp", "complete": True},
            ]
        }
    )

    text: Text = Field(description="The text written so far, in everyday or in the corpus's spelling. May be empty.")
    top_k: Count = Field(5, ge=1, le=50, description="Largest number of suggestions.")
    words: Count = Field(
        1, ge=1, le=5, description="Largest number of words in a suggestion; more than one takes a beam search."
    )
    complete: bool = Field(
        False, description="Treat the text's last run of non-space characters as a partly typed word, and complete it."
    )
    model: ModelName = None


class Suggestion(TypedDict):
    """One continuation, as a person would type it."""

    text: str
    probability: Probability
    log_probability: LogProbability


class NextWordAnswer(TypedDict):
    """The suggestions, likeliest first."""

    model: str
    version: str
    suggestions: list[Suggestion]
    context_tokens: Annotated[int, Field(description="Number of tokens in the context of the suggestions.")]
    unknown_words: Annotated[list[str], Field(description="Words of the text outside the vocabulary.")]
    cached_tokens: Annotated[int, Field(description="Number of context_tokens whose state was cached.")]


class Perplexity(RequestModel):
    """A request to score one text or several."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "The company's profits rose 12% in 1989.", "per_token": True, "alternatives": 2},
                {"texts": ["no it was n't black monday", "monday black n't was it no"], "mode": "sentence"},
            ],
            "oneOf": [{"required": ["text"]}, {"required": ["texts"]}],
        }
    )

    text: Text | None = Field(None, description="The text; a line break ends a sentence.")
    texts: list[Text] = Field(
        default_factory=list,
        min_length=1,
        max_length=256,
        description="Several texts, each scored separately and all together.",
    )
    mode: Literal["document", "sentence"] = Field(
        "document", description="document: a sentence is scored given the sentences before it; sentence: each alone."
    )
    per_token: bool = Field(False, description="Return the score of each token.")
    alternatives: Count = Field(
        0, ge=0, le=10, description="With per_token: number of likeliest tokens returned at each position."
    )
    model: ModelName = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        """Require exactly one of text and texts; the latter can't be sent empty, so an empty one was not sent."""
        if (self.text is not None) == bool(self.texts):
            field, found = ("texts", "both") if self.texts else ("text", "neither")
            raise InvalidField(field, f"expected exactly one of text and texts, found {found}")
        return self


class Alternative(TypedDict):
    """A likely token at the position of another."""

    token: str
    log_probability: LogProbability


class TokenScore(TypedDict):
    """The log-probability of one token given those before it."""

    token: Annotated[str, Field(description="The normalised token; `<eos>` at the end of a sentence.")]
    start: Annotated[int, Field(description="Offset in characters of the text as sent.")]
    end: Annotated[int, Field(description="Offset of the end; that of an `<eos>` is its start.")]
    log_probability: LogProbability
    rank: Annotated[int, Field(description="Rank by probability; 1 is the likeliest.")]
    unknown: Annotated[bool, Field(description="The token is outside the vocabulary and was scored as `<unk>`.")]
    alternatives: list[Alternative]


class Score(TypedDict):
    """The score of a text."""

    perplexity: Annotated[float | None, Field(description="exp(-log_likelihood / tokens); null without tokens.")]
    perplexity_excluding_unknown: Annotated[
        float | None, Field(description="Perplexity of the tokens in the vocabulary; null if there are none.")
    ]
    tokens: Annotated[int, Field(description="Number of tokens, each `<eos>` included.")]
    sentences: int
    unknown_tokens: int
    characters: int
    bytes: Annotated[int, Field(description="Length of the text in UTF-8.")]
    words: Annotated[int, Field(description="Number of words, separated by white space.")]
    log_likelihood: Annotated[float, Field(description="Nats.")]
    cross_entropy: Annotated[float | None, Field(description="Bits per token; null without tokens.")]
    bits_per_character: float | None
    bits_per_byte: Annotated[float | None, Field(description="Comparable between models; null without tokens.")]
    word_perplexity: Annotated[
        float | None, Field(description="exp(-log_likelihood / words), comparable between models; null without words.")
    ]
    token_scores: Annotated[list[TokenScore] | None, Field(description="Null unless per_token is set.")]


class PerplexityAnswer(TypedDict):
    """The score of each text, in order, and of all tokens pooled."""

    model: str
    version: str
    results: list[Score]
    corpus: Score


class NumberDigit(TypedDict):
    """One digit of a number."""

    digit: Annotated[int, Field(ge=0, le=9)]
    confidence: Probability
    box: Annotated[
        list[int],
        Field(min_length=4, max_length=4, description="Left, top, width and height in pixels of the upright image."),
    ]


class Digit(TypedDict):
    """The digit in an image."""

    digit: Annotated[int | None, Field(ge=0, le=9, description="Null if the image was rejected.")]
    confidence: Annotated[float, Field(ge=0, le=1, description="Calibrated probability that the digit is correct.")]
    probabilities: Annotated[
        list[Probability], Field(min_length=10, max_length=10, description="Of the digits 0 to 9.")
    ]
    rejected: Annotated[bool, Field(description="No digit was recognised in the image.")]
    reason: Annotated[str | None, Field(description="Reason of the rejection.")]
    framed: NotRequired[
        Annotated[str, Field(description="With framed=true: the model's 28x28 input, a PNG as a data URL.")]
    ]
    number: NotRequired[
        Annotated[str | None, Field(description="With number=true: the number in the image. Null if there is none.")]
    ]
    number_confidence: NotRequired[
        Annotated[float, Field(ge=0, le=1, description="With number=true: probability of the whole number.")]
    ]
    digits: NotRequired[
        Annotated[list[NumberDigit], Field(description="With number=true: its digits, from left to right.")]
    ]


class DigitsAnswer(TypedDict):
    """The digit of each image, in order."""

    model: str
    version: str
    results: list[Digit]


class OtherCaption(TypedDict):
    """A less likely caption."""

    caption: str
    log_probability: LogProbability


class Caption(TypedDict):
    """The best caption of an image, and its alternatives."""

    caption: str
    log_probability: LogProbability
    alternatives: Annotated[
        list[OtherCaption],
        Field(description="In the order of the beam search's length-normalised score."),
    ]


class CaptionsAnswer(TypedDict):
    """The caption of each image, in order."""

    model: str
    version: str
    results: list[Caption]


class CaptionWord(TypedDict):
    """The data of an event `word`: the next word of the caption in progress."""

    word: str
