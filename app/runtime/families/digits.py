"""The digit reader's predictor: a picture in, the digit on it out, or why there is none to be read."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.bundle import Bundle
from app.errors import BundleError
from app.images import Framed, decoded, framed, is_small, turned
from app.runtime.onnx_session import Precision, session
from app.runtime.recurrent_engine import Floats
from app.runtime.scheduler import Resources

DIGITS: Final = 10
READ_AT: Final = 512  # pixels of the shorter side: more of a large picture need not be decoded to frame it
NO_DIGIT: Final = "no digit to be read"
DOUBT: Final = 0.1  # more of it, 1 - confidence, calls for a second look,
TURN: Final = 8.0  # turned by so many degrees

Probabilities: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Classify:
    """Which digit is on this picture? See POST /digits."""

    content: bytes  # an encoded image
    name: str = "image"  # what errors call it

    @property
    def slow(self) -> bool:
        """Whether decoding and framing it may take long; for a small picture a thread would take longer."""
        return not is_small(self.content)


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to Classify."""

    digit: int | None  # None if rejected
    confidence: float  # the calibrated probability that the likeliest digit is right
    probabilities: list[float]  # of the digits 0 to 9, if it is one
    rejected: bool
    reason: str | None  # why it is rejected
    framed: npt.NDArray[np.uint8]  # (28, 28), what the model saw


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns a reader's logits into probabilities (Guo et al. 2017, arXiv 1706.04599) and tells digits from others.

    Both numbers are chosen on the validation part.
    """

    temperature: float  # that the logits are divided by
    rejection_threshold: float  # the largest doubt, 1 - confidence, that is still answered with a digit

    def probabilities(self, logits: Floats) -> Probabilities:
        """(B, 10 or 11) -> of each class, (B, 10 or 11)."""
        scaled = logits.astype(np.float64) / self.temperature
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        shares: Probabilities = powers / powers.sum(1, keepdims=True)
        return shares


class DigitsPredictor:
    """Reads digits with one model (the seam `Predictor`)."""

    PROBE_TOLERANCE: ClassVar[float] = 1e-2  # of a probability
    fits_inline: ClassVar[None] = None

    def __init__(self, reader: ort.InferenceSession, calibration: Calibration, *, precision: Precision) -> None:
        """`reader`: the graph of pixels (B, 28, 28) uint8 -> logits (B, 10 or 11), see training.digits.export."""
        self.precision = precision
        self._reader = reader
        self._calibration = calibration

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> "DigitsPredictor":
        """The predictor of a bundle, on its graph of this precision. Raise BundleError if it can't be run."""
        reader = session(bundle.path(f"reader.{precision}.onnx"), resources.threads)
        return cls(reader, calibration(bundle.manifest.calibration, str(bundle.folder)), precision=precision)

    def prepare(self, payload: Classify) -> Framed:
        """Decode and frame a picture. Raise Malformed for what is none, TooLarge for too many pixels."""
        return framed(decoded(payload.content, name=payload.name, least=READ_AT))

    def predict(self, examples: Sequence[Framed]) -> list[Classification | None]:
        """The answer to each; one turn is enough for all of them."""
        probabilities = self.probabilities(np.stack([each.pixels for each in examples]))
        return [self._answer(*each) for each in zip(examples, probabilities, strict=True)]

    def recalibrated(self, calibration: Calibration) -> "DigitsPredictor":
        """The same reader with another calibration."""
        return DigitsPredictor(self._reader, calibration, precision=self.precision)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> Probabilities:
        """Framed pixels (B, 28, 28) -> of each digit and perhaps of none, (B, 10 or 11).

        What is doubted is looked at again, turned by TURN degrees either way, and the mean counts: a digit stays what
        it is, what only looks like one does not.
        """
        found = self._calibration.probabilities(self.logits(pixels))
        again = np.flatnonzero(1 - confidences(found) > DOUBT)
        if len(again):
            looks = np.concatenate([turned(pixels[again], degrees) for degrees in (TURN, -TURN)])
            left, right = np.split(self._calibration.probabilities(self.logits(looks)), 2)
            found[again] = (found[again] + left + right) / 3
        return found

    def logits(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """(B, 28, 28) -> (B, 10 or 11)."""
        logits: Floats = self._reader.run(None, {"pixels": pixels})[0]
        return logits

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """[class, probability] of each digit and perhaps of none, for the `image` (base64) of `payload`."""
        example = self.prepare(Classify(base64.b64decode(payload["image"])))
        found = self.probabilities(example.pixels[None])[0]
        names = [*map(str, range(DIGITS)), "none"]  # the last for a reader that knows of none
        return [[name, float(value)] for name, value in zip(names, found, strict=False)]

    def _answer(self, example: Framed, probabilities: Probabilities) -> Classification:
        digits = probabilities[:DIGITS] / probabilities[:DIGITS].sum()
        confidence = float(confidences(probabilities))
        doubtful = 1 - confidence > self._calibration.rejection_threshold
        reason = example.reason or (NO_DIGIT if doubtful else None)
        if example.reason:  # the model was not made for what has no ink at all
            digits, confidence = np.full(DIGITS, 1 / DIGITS), 0.0
        return Classification(
            digit=None if reason else int(digits.argmax()),
            confidence=confidence,
            probabilities=digits.tolist(),
            rejected=reason is not None,
            reason=reason,
            framed=example.pixels,
        )


def calibration(found: Mapping[str, float], place: str) -> Calibration:
    """A manifest's calibration; BundleError, naming `place`, for one that is none."""
    try:
        return Calibration(**found)
    except TypeError as error:
        raise BundleError(
            f"{place}: calibration: expected temperature and rejection_threshold, found {found}"
        ) from error


def confidences(probabilities: Probabilities) -> Probabilities:
    """(..., 10 or 11) -> that there is a digit and that it is the likeliest one, (...)."""
    most: Probabilities = probabilities[..., :DIGITS].max(-1)
    return most
