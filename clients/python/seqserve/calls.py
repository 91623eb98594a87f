"""Requests: what each method of a client sends, and how its answer is decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeAlias, TypedDict, TypeVar

import httpx

from seqserve import errors
from seqserve.answers import (
    CaptionsAnswer,
    DigitsAnswer,
    ModelList,
    NextWordAnswer,
    PerplexityAnswer,
    decode,
)

T = TypeVar("T")

ImageFile: TypeAlias = bytes | str | PathLike[str]
"""An encoded image, or the path of one: PNG, JPEG, WebP, BMP or GIF."""

EVENTS: Final = "text/event-stream"
JSON: Final = "application/json"


class NextWordOptions(TypedDict, total=False):
    """Options of `next_word`; the server's default applies to an absent one."""

    top_k: int  # largest number of suggestions, 1..50
    words: int  # largest number of words in a suggestion, 1..5
    complete: bool  # complete the word being typed
    history: str | list[str]  # earlier texts of the same writer, oldest first, 64 KiB together at most
    adapt: bool | None  # make the words of history and text likelier to come again; None: the model's default
    model: str | None


class PerplexityOptions(TypedDict, total=False):
    """Options of `perplexity`."""

    mode: Literal["document", "sentence"]
    per_token: bool
    alternatives: int  # with per_token: likeliest tokens at each position, 0..10
    model: str | None


class DigitsOptions(TypedDict, total=False):
    """Options of `digits`."""

    framed: bool  # return the model's input image as well
    number: bool  # read a number of 1 to 12 digits as well
    model: str


class CaptionsOptions(TypedDict, total=False):
    """Options of `captions`."""

    beam: int  # beam width, 1..10
    alternatives: int  # largest number of further captions per image, 0..9
    tags: bool  # use the object detector, the default
    people: Literal["any", "neutral"]  # neutral: guess no gender
    attention: bool  # return where each word looked
    threshold: float  # confidence below which there is no caption, 0..1
    model: str


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, idempotent, and the type of its answer; `path` is relative to the base URL."""

    answer: type[T]
    method: Literal["GET", "POST"]
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    images: Sequence[bytes] = ()
    accept: str = JSON

    @property
    def files(self) -> list[tuple[str, tuple[str, bytes]]] | None:
        """The parts of the multipart body."""
        return [("image", (f"{index}", image)) for index, image in enumerate(self.images)] or None

    def decoded(self, response: httpx.Response) -> T:
        """Return the answer in a successful response. Raise UnexpectedAnswer if it is none."""
        try:
            return decode(self.answer, {**response.json()})
        except (KeyError, TypeError, ValueError) as error:
            found = response.text[:200]
            raise errors.UnexpectedAnswer(
                f"{response.url}: expected {self.answer.__name__}, found {found!r}"
            ) from error


def next_word(text: str, options: NextWordOptions) -> Call[NextWordAnswer]:
    """Request suggestions of the next words of a text."""
    return Call(NextWordAnswer, "POST", "next-word", json={"text": text, **options})


def perplexity(text: str | Sequence[str], options: PerplexityOptions) -> Call[PerplexityAnswer]:
    """Request the score of a text, or of several."""
    texts = {"text": text} if isinstance(text, str) else {"texts": list(text)}
    return Call(PerplexityAnswer, "POST", "perplexity", json={**texts, **options})


def digits(images: Sequence[ImageFile], options: DigitsOptions) -> Call[DigitsAnswer]:
    """Request the digit in each image."""
    return Call(DigitsAnswer, "POST", "digits", params={**options}, images=[*map(_content, images)])


def captions(images: Sequence[ImageFile], options: CaptionsOptions, accept: str = JSON) -> Call[CaptionsAnswer]:
    """Request a caption of each photograph; events are accepted for one alone."""
    content = [*map(_content, images)]
    return Call(CaptionsAnswer, "POST", "captions", params={**options}, images=content, accept=accept)


def models() -> Call[ModelList]:
    """Request the list of models."""
    return Call(ModelList, "GET", "models")


def _content(image: ImageFile) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()
