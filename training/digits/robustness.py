"""Robustness benchmark of digit readers: corruptions, variants of the digits, and images without a digit.

Images are given to the reader as to the server: encoded, or, where that changes nothing, as grey levels. The server
frames a PNG of grey levels to the same pixels as the levels themselves; `framed_image` frames both.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.errors import CorpusError
from app.images import Framed, decoded, framed, framed_array
from training.digits.corruptions import CORRUPTIONS
from training.digits.drawing import Grey
from training.digits.negatives import RawImage, benchmark_negatives

BATCH = 250  # images of one batch; 13 MB for the largest ones
BINS = 15  # of the calibration error

Variant: TypeAlias = Callable[[Grey, np.random.Generator], RawImage]


class Answer(Protocol):
    """A reader's answer for one image."""

    @property
    def digit(self) -> int | None:
        """The digit; None if rejected."""

    @property
    def confidence(self) -> float:
        """The predicted probability that there is a digit and that it is the likeliest one."""

    @property
    def probabilities(self) -> Sequence[float]:
        """Probabilities of the ten digits."""


Classify: TypeAlias = Callable[[list[RawImage]], Sequence[Answer]]


@dataclass(frozen=True)
class Robustness:
    """The results of `measure`; all but the counts are shares of 0 to 1."""

    images: int  # test digits, in each accuracy
    negatives: int  # images of each kind of negatives
    accuracy: float  # on the plain test digits; as everywhere, one rejected is wrong
    wrongly_rejected: float  # of the plain test digits
    calibration_error: float  # on the plain test digits
    corruptions: Mapping[str, float]  # accuracy
    variants: Mapping[str, float]  # accuracy
    rejected: Mapping[str, float]  # of each kind of negatives

    @property
    def corrupted_accuracy(self) -> float:
        """Mean accuracy over the corruptions."""
        return fmean(self.corruptions.values())

    @property
    def variant_accuracy(self) -> float:
        """Mean accuracy over the variants."""
        return fmean(self.variants.values())

    @property
    def negatives_rejected(self) -> float:
        """Mean share rejected, over the kinds of negatives."""
        return fmean(self.rejected.values())


def measure(
    classify: Classify,
    images: Grey,
    labels: npt.NDArray[np.integer],
    photographs: Sequence[bytes] = (),
    *,
    limit: int | None = None,
    negatives: int = 200,
    seed: int = 0,
) -> Robustness:
    """Measure a reader on digits (N, 28, 28), labels (N,), and `negatives` images of each kind without a digit.

    `photographs` are encoded images that the reader has not been trained on. With `limit` only so many digits are
    used, evenly spaced, since the first half of MNIST's test set is the easier one. Each metric has its own random
    generator, seeded by `seed` and the metric's name. Raise CorpusError without digits.
    """
    kinds = benchmark_negatives(photographs)
    digits, truth = _spread(images, labels, limit)

    def accuracy(name: str, change: Variant) -> float:
        rng = _rng(seed, name)
        return _accuracy(_answers(classify, (change(digit, rng) for digit in digits)), truth)

    def share_rejected(name: str) -> float:
        rng = _rng(seed, name)
        return _rejected(_answers(classify, (kinds[name](rng) for _ in range(negatives))))

    plain = _answers(classify, digits)
    likeliest = np.argmax([answer.probabilities for answer in plain], axis=1)
    return Robustness(
        images=len(digits),
        negatives=negatives,
        accuracy=_accuracy(plain, truth),
        wrongly_rejected=_rejected(plain),
        calibration_error=calibration_error([answer.confidence for answer in plain], likeliest == truth),
        corruptions={name: accuracy(name, corrupt) for name, corrupt in CORRUPTIONS.items()},
        variants={name: accuracy(name, change) for name, change in VARIANTS.items()},
        rejected={name: share_rejected(name) for name in kinds},
    )


def _spread(images: Grey, labels: npt.NDArray[np.integer], limit: int | None) -> tuple[Grey, npt.NDArray[np.integer]]:
    count = len(images) if limit is None else min(limit, len(images))
    if count < 1:
        raise CorpusError(f"images: expected digits to measure with, found {len(images)} and a limit of {limit}")
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    return images[chosen], labels[chosen]


def framed_image(image: RawImage) -> Framed:
    """The image as the server frames it; raise Malformed for bytes that are no image."""
    return framed(decoded(image)) if isinstance(image, bytes) else framed_array(image)


def calibration_error(confidence: Sequence[float], right: npt.NDArray[np.bool_]) -> float:
    """The expected calibration error with 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599).

    `right` (N,) is true where the likeliest digit equals the label, rejected or not.
    """
    bins = np.ceil(np.asarray(confidence) * BINS).clip(1, BINS).astype(int)  # a bin holds its upper edge
    gaps = np.bincount(bins, right - np.asarray(confidence))
    return float(np.abs(gaps).sum() / len(right))


def table(found: Robustness) -> str:
    """The results as Markdown tables for a model card, in per cent."""
    summary = [
        (f"test digits classified correctly ({found.images:,})", found.accuracy),
        ("test digits wrongly rejected", found.wrongly_rejected),
        (f"expected calibration error, {BINS} bins", found.calibration_error),
        ("MNIST-C's corruptions, mean accuracy", found.corrupted_accuracy),
        ("variants, mean accuracy", found.variant_accuracy),
        (f"images without a digit rejected ({found.negatives * len(found.rejected):,})", found.negatives_rejected),
    ]
    parts = [
        _rows("what", "%", summary),
        _rows("corruption", "accuracy %", found.corruptions.items()),
        _rows("variant", "accuracy %", found.variants.items()),
        _rows("no digit", "rejected %", found.rejected.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(name: str, metric: str, rows: Iterable[tuple[str, float]]) -> str:
    return "\n".join(
        [f"| {name} | {metric} |", "| --- | ---: |", *(f"| {n} | {100 * share:.2f} |" for n, share in rows)]
    )


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def _answers(classify: Classify, images: Iterable[RawImage]) -> list[Answer]:
    rest = iter(images)
    batches = iter(lambda: list(islice(rest, BATCH)), [])
    return [answer for batch in batches for answer in classify(batch)]


def _accuracy(answers: Sequence[Answer], truth: npt.NDArray[np.integer]) -> float:
    return fmean(answer.digit == label for answer, label in zip(answers, truth.tolist(), strict=True))


def _rejected(answers: Sequence[Answer]) -> float:
    return fmean(answer.digit is None for answer in answers)


def _resized(digit: Grey, factor: float) -> Grey:
    side = round(len(digit) * factor)
    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))


def _off_centre(digit: Grey, rng: np.random.Generator) -> Grey:
    """The digit on a canvas of four times the side, off centre by 30 % of the canvas along both axes."""
    side = len(digit)
    canvas = np.zeros((4 * side, 4 * side), np.uint8)
    top, left = (round(4 * side * (0.5 + 0.3 * way) - side / 2) for way in rng.choice([-1, 1], 2).tolist())
    canvas[top : top + side, left : left + side] = digit
    return canvas


def _as_jpeg(digit: Grey, quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(digit).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


VARIANTS: dict[str, Variant] = {  # a name also seeds its random generator: renaming changes the results
    "inverted": lambda digit, rng: 255 - digit,
    "half the size": lambda digit, rng: _resized(digit, 0.5),
    "twice the size": lambda digit, rng: _resized(digit, 2),
    "four times the size": lambda digit, rng: _resized(digit, 4),
    "eight times the size": lambda digit, rng: _resized(digit, 8),
    "30 % off centre on a large canvas": _off_centre,
    "JPEG at quality 50": lambda digit, rng: _as_jpeg(digit, 50),
    "turned by 15 degrees to either side": lambda digit, rng: np.asarray(
        Image.fromarray(digit).rotate(15 * rng.choice([-1, 1]), Image.Resampling.BICUBIC)
    ),
}
