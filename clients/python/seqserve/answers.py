"""The server's answers, one frozen dataclass for each schema of its OpenAPI document."""

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Suggestion:
    """One continuation, as a person would type it."""

    text: str
    probability: float
    log_probability: float


@dataclass(frozen=True)
class NextWordAnswer:
    """The suggestions, likeliest first."""

    model: str
    version: str
    suggestions: list[Suggestion]
    context_tokens: int  # tokens in the context of the suggestions
    unknown_words: list[str]
    cached_tokens: int  # context tokens whose state was in the server's cache


@dataclass(frozen=True)
class Alternative:
    """A likely token at the position of another."""

    token: str
    log_probability: float


@dataclass(frozen=True)
class TokenScore:
    """The log-probability of one token given those before it; offsets are in characters of the text as sent."""

    token: str
    start: int
    end: int
    log_probability: float
    rank: int  # 1 is the likeliest
    unknown: bool
    alternatives: list[Alternative]


@dataclass(frozen=True)
class Score:
    """The score of a text: `log_likelihood` in nats, `cross_entropy` in bits per token; None where there is no unit."""

    perplexity: float | None
    perplexity_excluding_unknown: float | None
    perplexity_open: float | None  # unknown words cost what their letters cost
    tokens: int
    sentences: int
    unknown_tokens: int
    characters: int
    bytes: int  # of UTF-8
    words: int  # separated by white space
    log_likelihood: float
    cross_entropy: float | None
    bits_per_character: float | None
    bits_per_byte: float | None
    word_perplexity: float | None
    token_scores: list[TokenScore] | None


@dataclass(frozen=True)
class PerplexityAnswer:
    """The score of each text, in order, and of all tokens pooled."""

    model: str
    version: str
    results: list[Score]
    corpus: Score


@dataclass(frozen=True)
class NumberDigit:
    """One digit of a number; its box is left, top, width and height in pixels of the upright image."""

    digit: int
    confidence: float
    box: list[int]


@dataclass(frozen=True)
class Digit:
    """The digit in an image, or None with the reason of the rejection; `framed` is a PNG as a data URL.

    `number`, `number_confidence` and `digits`, from left to right, are those of an image read as a number.
    """

    digit: int | None
    confidence: float
    probabilities: list[float]
    rejected: bool
    reason: str | None
    framed: str | None = None
    number: str | None = None
    number_confidence: float | None = None
    digits: list[NumberDigit] | None = None


@dataclass(frozen=True)
class DigitsAnswer:
    """The digit of each image, in order."""

    model: str
    version: str
    results: list[Digit]


@dataclass(frozen=True)
class OtherCaption:
    """A less likely caption."""

    caption: str
    log_probability: float


@dataclass(frozen=True)
class CaptionTag:
    """A detected object; its box is left, top, width and height in pixels of the upright image."""

    label: str
    score: float
    box: list[int]


@dataclass(frozen=True)
class CaptionLook:
    """A word of a caption: its weights over a grid of the whole image, and the share of the words before it."""

    text: str
    weights: list[list[float]]
    language: float


@dataclass(frozen=True)
class Caption:
    """The best caption of an image, its alternatives and the objects in it; `words` with `attention`.

    The caption is None below the threshold of `confidence`, with a `reason`; a model may have no confidence.
    """

    caption: str | None
    log_probability: float
    alternatives: list[OtherCaption]
    confidence: float | None
    reason: str | None
    tags: list[CaptionTag]
    words: list[CaptionLook] | None


@dataclass(frozen=True)
class CaptionsAnswer:
    """The caption of each image, in order."""

    model: str
    version: str
    results: list[Caption]


@dataclass(frozen=True)
class CaptionWord:
    """The next word of a streamed caption."""

    word: str


@dataclass(frozen=True)
class ModelSummary:
    """One model of the server; one that is not ready has only a name and a reason."""

    name: str
    ready: bool
    reason: str | None
    family: str | None
    version: str | None
    versions: list[str] | None
    cell: str | None
    parameters: int | None
    served: Literal["int8", "fp32"] | None
    metrics: dict[str, float] | None


@dataclass(frozen=True)
class ModelList:
    """All models, by name."""

    models: list[ModelSummary]


def decode(kind: type[T], value: Any) -> T:
    """Convert parsed JSON to the dataclass `kind`; members that it does not have are ignored.

    Raise KeyError if a member is missing.
    """
    decoded: T = _decode(kind, value)
    return decoded


def _decode(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        given = {
            field.name: _decode(hints[field.name], value[field.name])
            for field in dataclasses.fields(kind)
            if field.name in value or field.default is dataclasses.MISSING
        }
        return kind(**given)  # type: ignore[operator]  # a class, not an instance
    if isinstance(kind, UnionType):  # X | None
        return _decode(get_args(kind)[0], value)
    if get_origin(kind) is list:
        return [_decode(get_args(kind)[0], item) for item in value]
    return value
