"""The graphs of captioners, made by `training.captions`: photograph -> what the decoder sees, and one word after it.

A captioner of one vector (`training.captions.export`):

    cnn       pixels (B, 224, 224, 3) uint8 -> features (B, F)
    begin     features (B, F) -> state (B, S)
    step      tokens (B,) int64, state (B, S) -> log_probabilities (B, V), state_after (B, S)

An attentive one (`training.captions.attentive.export`), where L is 81 cells and 8 tags:

    cnn       pixels (B, 260, 260, 3) uint8 -> grid (B, 81, 352), pooled (B, 1280)
    detector  images (1, 3, H, W) -> output (1, cells, 85), see `app.images.objects`
    begin     grid, pooled, tags (B, 8, 2) int64
              -> state (B, S), distance (B,), slots (B, L, E), keys (B, L, A), mask (B, L)
    step      tokens (B,), state (B, S), photographs (B,) int64, slots (P, L, E), keys (P, L, A), mask (P, L)
              -> log_probabilities (B, V), state_after (B, S), attention (B, L + 1)

The CNN of a captioner of one vector is float32 in both precisions, as is the detector. With int8 it looks at a smaller
letterbox than in training.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from typing import Annotated, Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from PIL import Image
from pydantic import Field

from app.bundle import Bundle
from app.images import (
    DETECTOR_SIZE,
    ENCODER_SIZE,
    PHOTO_SIZE,
    QUICK_SIZE,
    decoded,
    detections,
    letterboxed,
    photo,
    upright_size,
)
from app.images.objects import Detection
from app.images.tags import tag_slots
from app.runtime.families.confidence import flatness
from app.runtime.fields import Probability
from app.runtime.onnx_session import Precision, session
from app.runtime.predictor import Resources
from app.runtime.recurrent_engine import Floats

DETECTOR: Final = "detector.onnx"


@dataclass(slots=True)
class CaptionTag:
    """An object that the detector sees."""

    label: str
    score: Probability
    box: Annotated[
        list[int],
        Field(min_length=4, max_length=4, description="Left, top, width, height in pixels of the upright image."),
    ]


@dataclass(frozen=True, slots=True)
class Sight:
    """A photograph as the decoder sees it."""

    state: Floats  # (1, S) before the first word
    memory: tuple[Floats, ...] = ()  # slots, keys and mask, each (1, L, ...)
    tags: list[CaptionTag] = field(default_factory=list)
    flatness: float = 0.0  # see `confidence.Signs`
    distance: float = 0.0


class StepOutput(NamedTuple):
    """The decoder's output for some hypotheses."""

    log_probabilities: Floats  # (n, V) of the next word
    states: Floats  # (n, S) after the last token
    attention: Floats  # (n, L + 1), of a decoder of one vector (n, 0)


class ImageDecoder(Protocol):
    """The graphs of one captioner."""

    @property
    def words(self) -> int:
        """Size of the vocabulary."""
        ...

    @property
    def attends(self) -> bool:
        """True if each word has its own look at the photograph."""
        ...

    def see(self, content: bytes, name: str, *, tags: bool) -> Sight:
        """See an encoded photograph, without `tags` by the CNN alone. Raise Malformed or TooLarge; `name` is its."""
        ...

    def decode(
        self, tokens: Sequence[int], states: Floats, sights: Sequence[Sight], owners: Sequence[int]
    ) -> StepOutput:
        """Run the decoder on the last tokens (n,) of hypotheses in states (n, S), each of one of the `sights`."""
        ...

    def look(self, attention: Floats) -> tuple[list[list[float]], float]:
        """Split a word's attention (L + 1,) into its weights over the cells, row by row, and its language's share."""
        ...


class VectorDecoder:
    """A captioner that sees one vector of a photograph."""

    attends = False

    def __init__(self, cnn: ort.InferenceSession, begin: ort.InferenceSession, step: ort.InferenceSession) -> None:
        self._cnn = cnn
        self._begin = begin
        self._step = step

    @property
    def words(self) -> int:
        """Size of the vocabulary."""
        return _width(self._step)

    def see(self, content: bytes, name: str, *, tags: bool) -> Sight:  # noqa: ARG002  # has no detector
        """See a photograph."""
        pixels = photo(decoded(content, name=name, least=PHOTO_SIZE))
        return Sight(self.begin(self.features(pixels[None])))

    def features(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Run the CNN: photographs (B, 224, 224, 3) -> features (B, F)."""
        # One at a time: the activations stay in the processor's cache
        return np.concatenate([self._cnn.run(None, {"pixels": one[None]})[0] for one in pixels])

    def begin(self, features: Floats) -> Floats:
        """Return the decoder's initial states (B, S) of features (B, F)."""
        state: Floats = self._begin.run(None, {"features": features})[0]
        return state

    def decode(
        self,
        tokens: Sequence[int],
        states: Floats,
        sights: Sequence[Sight] = (),  # noqa: ARG002  # are in the states
        owners: Sequence[int] = (),  # noqa: ARG002
    ) -> StepOutput:
        """Run the decoder on tokens (n,) in states (n, S)."""
        log_probabilities, after = self._step.run(None, {"tokens": np.array(tokens, np.int64), "state": states})
        return StepOutput(log_probabilities, after, np.empty((len(tokens), 0), np.float32))

    def look(self, attention: Floats) -> tuple[list[list[float]], float]:  # noqa: ARG002
        """Return nothing seen: the vector is in the state."""
        return [], 1.0


class AttentiveDecoder:
    """A captioner that attends to the cells of a grid and to tags."""

    attends = True

    def __init__(
        self,
        cnn: ort.InferenceSession,
        detector: ort.InferenceSession,
        begin: ort.InferenceSession,
        step: ort.InferenceSession,
        *,
        quick: bool,
    ) -> None:
        """`quick`: detect objects in a letterbox of QUICK_SIZE without most of its padding."""
        self._cnn = cnn
        self._detector = detector
        self._begin = begin
        self._step = step
        self._quick = quick

    @property
    def words(self) -> int:
        """Size of the vocabulary."""
        return _width(self._step)

    def see(self, content: bytes, name: str, *, tags: bool) -> Sight:
        """See a photograph, the detector beside the CNN where there is another core."""
        image = decoded(content, name=name, least=DETECTOR_SIZE if tags else ENCODER_SIZE)
        found: Callable[[], list[Detection]] = (lambda: self.detected(image)) if tags else list
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if tags and cores > 1:
            found = _started(found)
        pixels = photo(image, ENCODER_SIZE)
        grid, pooled = self.encoded(pixels)
        objects = found()
        state, distance, *memory = self.begin(grid, pooled, tag_slots(objects)[None])
        size = upright_size(content) * 2 if objects else (0, 0, 0, 0)
        seen_tags = [_tag(each, size) for each in objects]
        return Sight(state, tuple(memory), seen_tags, flatness(pixels), float(distance[0]))

    def detected(self, image: Image.Image) -> list[Detection]:
        """Run the detector on a whole image."""
        letterbox = letterboxed(image, QUICK_SIZE, trimmed=True) if self._quick else letterboxed(image)
        return detections(self._detector.run(None, {"images": letterbox.pixels})[0][0], letterbox)

    def encoded(self, pixels: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Run the CNN: a photograph (260, 260, 3) -> grid (1, 81, 352), pooled (1, 1280)."""
        grid, pooled = self._cnn.run(None, {"pixels": pixels[None]})
        return grid, pooled

    def begin(self, grid: Floats, pooled: Floats, tags: npt.NDArray[np.int64]) -> list[Floats]:
        """Return the state, distance, slots, keys and mask of photographs."""
        found: list[Floats] = self._begin.run(None, {"grid": grid, "pooled": pooled, "tags": tags})
        return found

    def decode(
        self, tokens: Sequence[int], states: Floats, sights: Sequence[Sight], owners: Sequence[int]
    ) -> StepOutput:
        """Run the decoder on tokens (n,) in states (n, S)."""
        memories = [sight.memory for sight in sights]
        slots, keys, mask = memories[0] if len(memories) == 1 else map(np.concatenate, zip(*memories, strict=True))
        inputs: dict[str, Any] = {
            "tokens": np.array(tokens, np.int64),
            "state": states,
            "photographs": np.array(owners, np.int64),
            "slots": slots,
            "keys": keys,
            "mask": mask,
        }
        return StepOutput(*self._step.run(None, inputs))

    def look(self, attention: Floats) -> tuple[list[list[float]], float]:
        """Split a word's attention; the tags' share is in neither part."""
        side = int((len(attention) - 1) ** 0.5)
        return attention[: side * side].reshape(side, side).tolist(), float(attention[-1])


def open_decoder(bundle: Bundle, precision: Precision, resources: Resources) -> VectorDecoder | AttentiveDecoder:
    """Open a bundle's graphs of this precision. Raise BundleError if they can't be run."""
    attends = DETECTOR in bundle.manifest.files
    names = [f"cnn.{precision if attends else 'fp32'}.onnx", f"begin.{precision}.onnx", f"step.{precision}.onnx"]
    cnn, begin, step = (session(bundle.path(name), resources.threads) for name in names)
    if not attends:
        return VectorDecoder(cnn, begin, step)
    detector = session(bundle.path(DETECTOR), resources.threads)
    return AttentiveDecoder(cnn, detector, begin, step, quick=precision == "int8")


def _started(function: Callable[[], list[Detection]]) -> Callable[[], list[Detection]]:
    """Start a function in a thread of its own, which outlives no fork; return a function that waits for its result."""
    outcome: Future[list[Detection]] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001  # raised again where the result is awaited
            outcome.set_exception(error)

    Thread(target=run, name="detector").start()
    return outcome.result


def _width(step: ort.InferenceSession) -> int:
    """The size of a step's distribution."""
    return int(step.get_outputs()[0].shape[1])


def _tag(found: Detection, size: tuple[int, ...]) -> CaptionTag:
    left, top, width, height = (round(share * side) for share, side in zip(found.box, size, strict=True))
    return CaptionTag(found.label, found.score, [left, top, width, height])
