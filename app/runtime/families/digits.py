"""The digit reader's predictor: image -> digit, or the reason why it is rejected."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from pydantic import ConfigDict, Field

from app.bundle import Bundle
from app.errors import BundleError
from app.images import Framed, decoded, framed, is_small, turned
from app.runtime.fields import Probability
from app.runtime.onnx_session import Precision, session
from app.runtime.predictor import Resources
from app.runtime.recurrent_engine import Floats

DIGITS: Final = 10
READ_AT: Final = 512  # pixels of the shorter side to which a large image is decoded for framing
NO_DIGIT: Final = "no digit to be read"
MAX_TEMPERATURE: Final = 100
DOUBT: Final = 0.1  # above this 1 - confidence, the image is read again,
ROTATION: Final = 8.0  # rotated by this many degrees either way

Probabilities: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Classify:
    """A request to read the digit on an image; see POST /digits."""

    content: bytes  # an encoded image
    name: str = "image"  # what errors call it
    bulk: ClassVar[bool] = False

    @property
    def slow(self) -> bool:
        """True if decoding and framing may take long; for a small image the switch to a thread takes longer."""
        return not is_small(self.content)


@dataclass(slots=True)
class Classification:
    """The answer to Classify: the digit in an image."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    digit: Annotated[Annotated[int, Field(ge=0, le=9)] | None, Field(description="Null if the image was rejected.")]
    confidence: Annotated[Probability, Field(description="Calibrated probability that the digit is correct.")]
    probabilities: Annotated[
        list[Probability], Field(min_length=10, max_length=10, description="Of the digits 0 to 9.")
    ]  # given that the image shows one
    rejected: Annotated[bool, Field(description="No digit was recognised in the image.")]
    reason: Annotated[str | None, Field(description="Reason of the rejection.")]
    framed: Annotated[npt.NDArray[np.uint8], Field(exclude=True)]  # (28, 28), the model's input


@dataclass(frozen=True, slots=True)
class Calibration:
    """Temperature scaling of the logits (Guo et al. 2017, arXiv 1706.04599) and the threshold of rejection.

    Both are chosen on the validation split.
    """

    temperature: float  # divisor of the logits
    rejection_threshold: float  # largest 1 - confidence that is answered with a digit

    def probabilities(self, logits: Floats) -> Probabilities:
        """Return the class probabilities of logits (B, 10 or 11)."""
        scaled = logits.astype(np.float64) / self.temperature
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        shares: Probabilities = powers / powers.sum(1, keepdims=True)
        return shares


class DigitsPredictor:
    """The `Predictor` of one digit reader."""

    PROBE_TOLERANCE: ClassVar[float] = 1e-2  # of a probability
    fits_inline: ClassVar[None] = None

    def __init__(self, reader: ort.InferenceSession, calibration: Calibration, *, precision: Precision) -> None:
        """`reader`: the graph of pixels (B, 28, 28) uint8 -> logits (B, 10 or 11), see training.digits.export."""
        self.precision = precision
        self._reader = reader
        self._calibration = calibration

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> "DigitsPredictor":
        """Open a bundle's graph of this precision. Raise BundleError if it can't be run."""
        reader = session(bundle.path(f"reader.{precision}.onnx"), resources.threads)
        return cls(reader, calibration(bundle.manifest.calibration, str(bundle.folder)), precision=precision)

    def prepare(self, payload: Classify) -> Framed:
        """Decode and frame an image. Raise Malformed for an undecodable one, TooLarge for too many pixels."""
        return framed(decoded(payload.content, name=payload.name, least=READ_AT))

    def step(self, examples: Sequence[Framed]) -> list[Classification | None]:
        """Return the answer to every example: one step is enough."""
        probabilities = self.probabilities(np.stack([each.pixels for each in examples]))
        return [self._answer(*each) for each in zip(examples, probabilities, strict=True)]

    def recalibrated(self, calibration: Calibration) -> "DigitsPredictor":
        """Return this reader with another calibration."""
        return DigitsPredictor(self._reader, calibration, precision=self.precision)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> Probabilities:
        """Return the probabilities (B, 10 or 11) of the digits, and perhaps of "no digit", of pixels (B, 28, 28).

        Doubtful images are read again, rotated by ROTATION degrees either way, and the probabilities averaged: a digit
        keeps its class, an image that only resembles one does not.
        """
        found = self._calibration.probabilities(self.logits(pixels))
        again = np.flatnonzero(1 - confidences(found) > DOUBT)
        if len(again):
            rotated = np.concatenate([turned(pixels[again], degrees) for degrees in (ROTATION, -ROTATION)])
            left, right = np.split(self._calibration.probabilities(self.logits(rotated)), 2)
            found[again] = (found[again] + left + right) / 3
        return found

    def logits(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Run the graph: pixels (B, 28, 28) -> logits (B, 10 or 11)."""
        logits: Floats = self._reader.run(None, {"pixels": pixels})[0]
        return logits

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """Return [class, probability] of each digit, and perhaps of none, for the `image` (base64) of `payload`.

        For a rejected image it is ["rejected", confidence] alone.
        """
        example = self.prepare(Classify(base64.b64decode(payload["image"])))
        found = self.probabilities(example.pixels[None])[0]
        if (answer := self._answer(example, found)).rejected:
            return [["rejected", answer.confidence]]
        names = [*map(str, range(DIGITS)), "none"]  # a reader with 10 classes has no "none"
        return [[name, float(value)] for name, value in zip(names, found, strict=False)]

    def _answer(self, example: Framed, probabilities: Probabilities) -> Classification:
        digits = probabilities[:DIGITS] / probabilities[:DIGITS].sum()
        confidence = float(confidences(probabilities))
        doubtful = 1 - confidence > self._calibration.rejection_threshold
        reason = example.reason or (NO_DIGIT if doubtful else None)
        if example.reason:  # without ink, outside the model's domain
            digits, confidence = np.full(DIGITS, 1 / DIGITS), 0.0
        return Classification(
            digit=None if reason else int(digits.argmax()),
            confidence=confidence,
            probabilities=digits.tolist(),
            rejected=reason is not None,
            reason=reason,
            framed=example.pixels,
        )


def calibration(found: Mapping[str, float], folder: str) -> Calibration:
    """Return a manifest's calibration. Raise BundleError that names `folder` if it is invalid."""
    if found.keys() != {"temperature", "rejection_threshold"}:
        raise BundleError(f"{folder}: calibration: expected temperature and rejection_threshold, found {found}")
    made = Calibration(**found)
    if not (0 < made.temperature <= MAX_TEMPERATURE and 0 <= made.rejection_threshold <= 1):
        expected = f"a temperature of at most {MAX_TEMPERATURE} and a rejection_threshold from 0 to 1"
        raise BundleError(f"{folder}: calibration: expected {expected}, found {found}")
    return made


def confidences(probabilities: Probabilities) -> Probabilities:
    """Return the largest probability of a digit, (..., 10 or 11) -> (...)."""
    most: Probabilities = probabilities[..., :DIGITS].max(-1)
    return most
