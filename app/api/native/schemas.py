"""Requests and answers of the native API: those of the model families, with the name and version of the model."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from app.api.http.fields import ModelName
from app.errors import InvalidField
from app.runtime import scores, scoring
from app.runtime.families import captions, digits, language_model
from app.runtime.families.numbers import NumberDigit
from app.runtime.fields import PAYLOAD, Probability, Text

Png = Annotated[str, Field(description="With framed=true: the model's 28x28 input, a PNG as a data URL.")]
OptionalText = Annotated[Text | None, Field(description="The text; a line break ends a sentence.")]


@dataclass(frozen=True, slots=True)
class NextWord(language_model.Suggest):
    """A request for suggestions of the next words of a text."""

    __pydantic_config__: ClassVar[ConfigDict] = PAYLOAD | ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "Thanks for your quick", "top_k": 3},
                {"text": "I am afraid I don", "complete": True},
            ]
        }
    )

    model: ModelName = None


@dataclass(frozen=True, slots=True)
class Perplexity(scoring.Score):
    """A request to score one text or several."""

    __pydantic_config__: ClassVar[ConfigDict] = PAYLOAD | ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "The company's profits rose 12% in 1989.", "per_token": True, "alternatives": 2},
                {"texts": ["no it was n't black monday", "monday black n't was it no"], "mode": "sentence"},
            ],
            "oneOf": [{"required": ["text"]}, {"required": ["texts"]}],
        }
    )

    text: OptionalText = None  # type: ignore[assignment]  # None with texts
    texts: Annotated[
        list[Text],
        Field(
            min_length=1,
            max_length=256,
            description="Several texts, each scored separately and all together.",
        ),
    ] = field(default_factory=list)
    model: ModelName = None

    def __post_init__(self) -> None:
        """Require exactly one of text and texts; the latter can't be sent empty, so an empty one was not sent."""
        if (self.text is not None) == bool(self.texts):
            name, found = ("texts", "both") if self.texts else ("text", "neither")
            raise InvalidField(name, f"expected exactly one of text and texts, found {found}")


@dataclass
class Answer:
    """An answer of a model."""

    model: str
    version: str


@dataclass
class NextWordAnswer(language_model.Suggestions, Answer):
    """The suggestions, likeliest first."""


@dataclass
class Score(scores.TextScore):
    """The score of a text."""


@dataclass
class PerplexityAnswer(Answer):
    """The score of each text, in order, and of all tokens pooled."""

    results: list[Score]
    corpus: Score


@dataclass
class Digit(digits.Classification):
    """The digit in an image."""

    framed: Png = field(default_factory=str)  # type: ignore[assignment]  # the pixels as a data URL
    number: Annotated[
        str | None, Field(description="With number=true: the number in the image. Null if there is none.")
    ] = field(default_factory=str)
    number_confidence: Annotated[
        Probability, Field(description="With number=true: probability of the whole number.")
    ] = field(default_factory=float)
    digits: Annotated[list[NumberDigit], Field(description="With number=true: its digits, from left to right.")] = (
        field(default_factory=list)
    )


@dataclass
class DigitsAnswer(Answer):
    """The digit of each image, in order."""

    results: list[Digit]


@dataclass
class Caption(captions.Description):
    """The best caption of an image, and its alternatives."""


@dataclass
class CaptionsAnswer(Answer):
    """The caption of each image, in order."""

    results: list[Caption]


class CaptionWord(TypedDict):
    """The data of an event `word`: the next word of the caption in progress."""

    word: str
