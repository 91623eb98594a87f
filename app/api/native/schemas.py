"""What goes over the wire: requests, checked strictly, and answers, plain dicts whose keys and types stand here."""

from typing import Annotated, Literal, NotRequired, Self

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from app.api.http.fields import Count, LogProbability, ModelName, Probability, RequestModel, Text, Words
from app.errors import InvalidField


class NextWord(RequestModel):
    """How may this text go on?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "The company said its third-quarter", "top_k": 3},
                {"text": "shares of the comp", "complete": True},
            ]
        }
    )

    text: Text = Field(description="What was written so far, in everyday or in the corpus's spelling. May be empty.")
    top_k: Count = Field(5, ge=1, le=50, description="Suggestions wanted at most.")
    words: Count = Field(1, ge=1, le=5, description="Words of a suggestion at most; more than one is a beam search.")
    complete: bool = Field(
        False, description="Is the text's last run of non-space characters a word being typed? It is completed then."
    )
    model: ModelName = None


class Suggestion(TypedDict):
    """One way to go on, as a person would type it."""

    text: str
    probability: Probability
    log_probability: LogProbability


class NextWordAnswer(TypedDict):
    """The suggestions, likeliest first."""

    model: str
    version: str
    suggestions: list[Suggestion]
    context_tokens: Annotated[int, Field(description="Tokens of the text that the suggestions follow.")]
    unknown_words: Annotated[list[str], Field(description="Words of the text that the model doesn't know.")]
    cached_tokens: Annotated[int, Field(description="How many of context_tokens were remembered from before.")]


class Perplexity(RequestModel):
    """How likely is this text, or are these texts?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "The company's profits rose 12% in 1989.", "per_token": True, "alternatives": 2},
                {"texts": ["no it was n't black monday", "monday black n't was it no"], "mode": "sentence"},
            ],
            "oneOf": [{"required": ["text"]}, {"required": ["texts"]}],
        }
    )

    text: Words = Field(default_factory=str, description="The text; a line break ends a sentence.")
    texts: list[Words] = Field(
        default_factory=list,
        min_length=1,
        max_length=256,
        description="Or several texts, each scored by itself and all of them together.",
    )
    mode: Literal["document", "sentence"] = Field(
        "document", description="Whether a sentence is read knowing those before it."
    )
    per_token: bool = Field(False, description="Is the score of each token wanted?")
    alternatives: Count = Field(0, ge=0, le=10, description="With per_token: likeliest tokens told in each place.")
    model: ModelName = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        """What was sent is not empty, so what is empty was not sent."""
        if bool(self.text) == bool(self.texts):
            field, found = ("texts", "both") if self.text else ("text", "neither")
            raise InvalidField(field, f"expected exactly one of text and texts, found {found}")
        return self


class Alternative(TypedDict):
    """A likely token in the place of another."""

    token: str
    log_probability: LogProbability


class TokenScore(TypedDict):
    """How likely one token was after those before it."""

    token: Annotated[str, Field(description="As the model reads it: normalised, `<eos>` at the end of a sentence.")]
    start: Annotated[int, Field(description="Offset in characters of the text as sent.")]
    end: Annotated[int, Field(description="Offset of the end; that of an `<eos>` is its start.")]
    log_probability: LogProbability
    rank: Annotated[int, Field(description="1 if no token was likelier.")]
    unknown: Annotated[bool, Field(description="Was the token read as `<unk>`?")]
    alternatives: list[Alternative]


class Score(TypedDict):
    """How likely a text was."""

    perplexity: Annotated[float, Field(description="exp(-log_likelihood / tokens).")]
    perplexity_excluding_unknown: Annotated[
        float | None, Field(description="The same over the known tokens alone; null if there are none.")
    ]
    tokens: Annotated[int, Field(description="Counts each `<eos>`.")]
    sentences: int
    unknown_tokens: int
    characters: int
    log_likelihood: Annotated[float, Field(description="Nats.")]
    cross_entropy: Annotated[float, Field(description="Bits a token.")]
    bits_per_character: float
    token_scores: Annotated[list[TokenScore] | None, Field(description="Null unless per_token was asked for.")]


class PerplexityAnswer(TypedDict):
    """The score of each text, in their order, and of all tokens pooled."""

    model: str
    version: str
    results: list[Score]
    corpus: Score


class Digit(TypedDict):
    """The digit that an image shows."""

    digit: Annotated[int | None, Field(ge=0, le=9, description="Null if the image was rejected.")]
    confidence: Annotated[float, Field(ge=0, le=1, description="Calibrated: of those with 0.9, nine in ten are right.")]
    probabilities: Annotated[
        list[Probability], Field(min_length=10, max_length=10, description="Of the digits 0 to 9.")
    ]
    rejected: Annotated[bool, Field(description="Is there no digit to be seen?")]
    reason: Annotated[str | None, Field(description="Why it was rejected.")]
    framed: NotRequired[
        Annotated[str, Field(description="With framed=true: the 28x28 PNG that the model saw, as a data URL.")]
    ]


class DigitsAnswer(TypedDict):
    """The digit of each image, in their order."""

    model: str
    version: str
    results: list[Digit]


class OtherCaption(TypedDict):
    """A less likely caption."""

    caption: str
    log_probability: LogProbability


class Caption(TypedDict):
    """The likeliest caption of an image, and those next to it."""

    caption: str
    log_probability: LogProbability
    alternatives: Annotated[
        list[OtherCaption],
        Field(description="In the order in which the search prefers them, which weighs in their length."),
    ]


class CaptionsAnswer(TypedDict):
    """The caption of each image, in their order."""

    model: str
    version: str
    results: list[Caption]


class CaptionWord(TypedDict):
    """The data of an event `word`: the next word of the caption that is being made."""

    word: str
