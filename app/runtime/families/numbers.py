"""The number reader's predictor: image -> number of 1 to 12 digits in a row, with a box for each digit."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final

import onnxruntime as ort
from pydantic import Field

from app.bundle import Bundle
from app.errors import BundleError
from app.images import Strip, decoded, number_strip
from app.runtime import ctc
from app.runtime.fields import Probability
from app.runtime.onnx_session import Precision, session
from app.runtime.predictor import Resources

MAX_DIGITS: Final = 12
NO_NUMBER: Final = "no number to be read"


@dataclass(frozen=True, slots=True)
class ReadNumber:
    """A request to read the number on an image; see POST /digits with number=true."""

    content: bytes  # an encoded image
    name: str = "image"  # what errors call it
    bulk: ClassVar[bool] = False
    slow: ClassVar[bool] = True  # an image is decoded whole, for boxes in its pixels


@dataclass(slots=True)
class NumberDigit:
    """One digit of a number."""

    digit: Annotated[int, Field(ge=0, le=9)]
    confidence: Probability  # of its likeliest step
    box: Annotated[
        list[int],
        Field(min_length=4, max_length=4, description="Left, top, width and height in pixels of the upright image."),
    ]


@dataclass(slots=True)
class Number:
    """The answer to ReadNumber, as fields of the answer about the digit in the same image."""

    number: str | None  # None if there is none to be read
    confidence: Annotated[float, Field(serialization_alias="number_confidence")]  # probability of the whole number
    digits: list[NumberDigit]  # from left to right; empty without a number
    reason: Annotated[str | None, Field(exclude=True)]  # for which there is none


class NumbersPredictor:
    """The `Predictor` of one number reader."""

    PROBE_TOLERANCE: ClassVar[float] = 1e-2  # of a probability
    fits_inline: ClassVar[None] = None

    def __init__(self, reader: ort.InferenceSession, threshold: float, *, precision: Precision) -> None:
        """`reader`: the graph of pixels (28, W) uint8 -> logits (T, 11), see training.digits.number_export.

        `threshold`: the largest doubt that is answered with a number.
        """
        self.precision = precision
        self._reader = reader
        self._threshold = threshold

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> "NumbersPredictor":
        """Open a bundle's graph of this precision. Raise BundleError if it can't be run."""
        found = bundle.manifest.calibration
        if found.keys() != {"rejection_threshold"} or not 0 <= found["rejection_threshold"] <= 1:
            expected = "a rejection_threshold from 0 to 1"
            raise BundleError(f"{bundle.folder}: calibration: expected {expected}, found {found}")
        reader = session(bundle.path(f"reader.{precision}.onnx"), resources.threads)
        return cls(reader, found["rejection_threshold"], precision=precision)

    def prepare(self, payload: ReadNumber) -> Strip:
        """Decode an image, find its row of ink. Raise Malformed for a damaged one, TooLarge for too many pixels."""
        return number_strip(decoded(payload.content, name=payload.name))

    def step(self, examples: Sequence[Strip]) -> list[Number | None]:
        """Return the answer to every example. Each strip is read by itself, at its own width: padding changes none."""
        return [self.read(example) for example in examples]

    def read(self, strip: Strip) -> Number:
        """Return the number on a strip."""
        if strip.reason:
            return Number(None, 0.0, [], strip.reason)
        logits = self.logits(strip)
        path = ctc.best_path(logits)
        confidence = ctc.probability(logits, path.digits)
        if not 1 <= len(path.digits) <= MAX_DIGITS or doubt(confidence, len(path.digits)) > self._threshold:
            return Number(None, confidence, [], NO_NUMBER)
        boxes = _boxes(strip, path.spans, strip.pixels.shape[1] // len(logits))
        digits = [NumberDigit(*each) for each in zip(path.digits, path.confidences, boxes, strict=True)]
        return Number("".join(map(str, path.digits)), confidence, digits, None)

    def logits(self, strip: Strip) -> ctc.Floats:
        """Run the graph: logits (T, 11) of a strip."""
        logits: ctc.Floats = self._reader.run(None, {"pixels": strip.pixels})[0]
        return logits

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """Return [number, confidence] for the `image` (base64) of `payload`."""
        found = self.read(self.prepare(ReadNumber(base64.b64decode(payload["image"]))))
        return [[found.number or "none", found.confidence]]


def doubt(confidence: float, digits: int) -> float:
    """Return 1 minus the mean probability (geometric) of a number's digits: a long number is no more doubtful."""
    return float(1 - confidence ** (1 / digits))


def _boxes(strip: Strip, spans: Sequence[tuple[int, int]], columns: int) -> list[list[int]]:
    """Return the box of each digit: neighbours are split at the column of least ink between their steps' middles."""
    ink = strip.pixels.sum(0, dtype=int)
    middles = [columns * (start + end) // 2 for start, end in spans]
    cuts = [0, *(left + int(ink[left : right + 1].argmin()) for left, right in pairwise(middles)), len(ink)]
    return [strip.box(start, max(end, start + 1)) for start, end in pairwise(cuts)]
