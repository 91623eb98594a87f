"""The captioner's predictor: photograph -> sentence, one word per scheduling step.

Three graphs (made by `training.captions.export`), the first in float32 alone:

    cnn     pixels (B, 224, 224, 3) uint8 -> features (B, F)
    begin   features (B, F) -> state (B, S)
    step    tokens (B,) int64, state (B, S) -> log_probabilities (B, V), state_after (B, S)
"""

import base64
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from pydantic import Field

from app.bundle import Bundle
from app.errors import BundleError
from app.images import PHOTO_SIZE, decoded, photo
from app.runtime.beam_search import Expansion, Hypothesis, beam_search
from app.runtime.fields import LogProbability, require_ranges
from app.runtime.onnx_session import Precision, session
from app.runtime.predictor import Partial, Resources, answer_all
from app.runtime.recurrent_engine import WEIGHTS, Floats
from app.text import Tokenizer

MAX_LENGTH: Final = 200  # words
MAX_LENGTH_PENALTY: Final = 10
MAX_STEP_ROWS: Final = 800  # hypotheses that one step extends: about 50 ms, search included

Beam = Annotated[int, Field(ge=1, le=10, description="Beam width: captions kept at each step of the search.")]
OtherCaptions = Annotated[int, Field(ge=0, le=9, description="Largest number of further captions per image.")]


@dataclass(frozen=True, slots=True)
class Describe:
    """A request for a photograph's caption; see POST /captions."""

    content: bytes  # an encoded image
    name: str = "image"  # what errors call it
    beam: Beam = 3
    alternatives: OtherCaptions = 0
    bulk: ClassVar[bool] = False
    slow: ClassVar[bool] = True  # a photograph takes long to decode


@dataclass(slots=True)
class OtherCaption:
    """A less likely caption."""

    caption: str
    log_probability: LogProbability


@dataclass(slots=True)
class Description:
    """The answer to Describe: the best caption, and its alternatives."""

    caption: str
    log_probability: LogProbability
    alternatives: Annotated[
        list[OtherCaption], Field(description="In the order of the beam search's length-normalised score.")
    ]


class DecodeStep(NamedTuple):
    """The hypotheses of one photograph that the next step extends by a word."""

    tokens: list[int]  # the last of each of n hypotheses
    states: Floats  # (n, S) before it


class StepOutput(NamedTuple):
    """The decoder's output for a DecodeStep."""

    log_probabilities: Floats  # (n, V) of the next word
    states: Floats  # (n, S) after the last token


Steps: TypeAlias = Generator[DecodeStep, StepOutput, Description]


class Example:
    """An encoded photograph in decoding: the generator of its steps, the next one, and the words not yet returned."""

    def __init__(self, steps: Steps, words: "_WordStream") -> None:
        self._steps = steps
        self._words = words
        self.step = next(steps)
        self.answer: Description | None = None

    @property
    def cost(self) -> int:
        """The number of hypotheses that its next step extends."""
        return len(self.step.tokens)

    def send(self, output: StepOutput) -> None:
        """Continue with the decoder's output for the step."""
        try:
            self.step = self._steps.send(output)
        except StopIteration as stop:
            self.answer = stop.value

    def output(self) -> Partial[str, Description] | None:
        """Return the words that have become certain since the last call, and the answer if there is one."""
        words = self._words.take()
        return Partial(words, self.answer) if words or self.answer else None


class CaptionsPredictor:
    """The `Predictor` of one captioner."""

    # nats of a caption; processors' sums differ in the seventh digit, which int8's rounding may amplify to 0.015
    PROBE_TOLERANCE: ClassVar[float] = 0.05
    fits_inline: ClassVar[None] = None

    def __init__(
        self,
        cnn: ort.InferenceSession,
        begin: ort.InferenceSession,
        step: ort.InferenceSession,
        tokenizer: Tokenizer,
        *,
        precision: Precision,
        length: int,
        length_penalty: float,
    ) -> None:
        """`length`: the most words of a caption; `length_penalty`: see `app.runtime.beam_search`."""
        self.precision = precision
        self._cnn = cnn
        self._begin = begin
        self._step = step
        self._tokenizer = tokenizer
        self._length = length
        self._length_penalty = length_penalty

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> "CaptionsPredictor":
        """Open a bundle's graphs of this precision. Raise BundleError if they can't be run."""
        bundle.path(WEIGHTS)  # the graphs load it themselves, so it must be among the verified files
        graphs = ("cnn.fp32.onnx", f"begin.{precision}.onnx", f"step.{precision}.onnx")
        cnn, begin, step = (session(bundle.path(graph), resources.threads) for graph in graphs)
        return cls(
            cnn,
            begin,
            step,
            resources.tokenizer(bundle, step.get_outputs()[0].shape[1]),
            precision=precision,
            length=int(_setting(bundle, "length", 1, MAX_LENGTH)),
            length_penalty=_setting(bundle, "length_penalty", 0, MAX_LENGTH_PENALTY),
        )

    def prepare(self, payload: Describe) -> Example:
        """Decode a photograph and run the CNN; the words are left to the steps.

        Batching photographs gains nothing in the CNN; several preprocessing threads do. Raise InvalidField for a number
        out of its range, Malformed for an undecodable image, TooLarge for too many pixels.
        """
        require_ranges(payload)
        pixels = photo(decoded(payload.content, name=payload.name, least=PHOTO_SIZE))
        words = _WordStream(self._word)
        return Example(self._describe(self.begin(self.features(pixels[None])), payload, words), words)

    def step(self, examples: Sequence[Example]) -> list[Partial[str, Description] | None]:
        """Run one step; return per example the words that have become certain, and with the last ones the caption.

        A step extends all hypotheses of all examples by one word, as one batch. The first example is always advanced,
        the others in order while there are at most MAX_STEP_ROWS hypotheses.
        """
        active, room = list[Example](), MAX_STEP_ROWS
        for example in examples:
            if not active or example.cost <= room:
                active.append(example)
                room -= example.cost
        steps = [example.step for example in active]
        log_probabilities, states = self._decode_all(steps)
        end = 0
        for example, step in zip(active, steps, strict=True):
            start, end = end, end + len(step.tokens)
            example.send(StepOutput(log_probabilities[start:end], states[start:end]))
        return [example.output() for example in examples]

    def features(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Run the CNN: photographs (B, 224, 224, 3) -> features (B, F)."""
        # One at a time: the activations stay in the processor's cache
        return np.concatenate([self._cnn.run(None, {"pixels": one[None]})[0] for one in pixels])

    def begin(self, features: Floats) -> Floats:
        """Return the decoder's initial states (B, S) of features (B, F)."""
        state: Floats = self._begin.run(None, {"features": features})[0]
        return state

    def decode(self, tokens: Sequence[int], states: Floats) -> StepOutput:
        """Run the decoder on tokens (B,) in states (B, S)."""
        return StepOutput(*self._step.run(None, {"tokens": np.array(tokens, np.int64), "state": states}))

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """Return [caption, log-probability] of the caption and its alternatives; `payload` has an `image` (base64)."""
        settings = payload | {"content": base64.b64decode(payload["image"])}
        del settings["image"]
        (found,) = answer_all(self, [self.prepare(Describe(**settings))])
        return [[each.caption, each.log_probability] for each in (found, *found.alternatives)]

    def _decode_all(self, steps: Sequence[DecodeStep]) -> StepOutput:
        """Run all steps as one batch."""
        tokens = list(chain.from_iterable(step.tokens for step in steps))
        output = self.decode(tokens, np.concatenate([step.states for step in steps]))
        if self._tokenizer.unknown is not None:
            output.log_probabilities[:, self._tokenizer.unknown] = -np.inf
        return output

    def _describe(self, state: Floats, payload: Describe, words: "_WordStream") -> Steps:
        """Search for the caption, and for alternatives, from the initial state (1, S); stream the caption's words.

        The caption is the best of a search of width `beam`, whatever the number of alternatives. Alternatives are the
        other results of that search or, if these are too few, those of a second, wider search.
        """
        first = yield DecodeStep([self._tokenizer.end], state)
        best, *others = yield from self._search(first, payload.beam, words)
        words(best.tokens)
        if payload.alternatives >= payload.beam:
            wider = yield from self._search(first, payload.alternatives + 1)
            others = [hypothesis for hypothesis in wider if hypothesis.tokens != best.tokens]
        return Description(
            self._caption(best),
            best.log_probability,
            [OtherCaption(self._caption(each), each.log_probability) for each in others[: payload.alternatives]],
        )

    def _search(
        self, first: StepOutput, width: int, on_certain: Callable[[tuple[int, ...]], None] | None = None
    ) -> Generator[DecodeStep, StepOutput, list[Hypothesis[int]]]:
        """Run a beam search; a hypothesis's state is its row among the states of the last output."""
        output = first
        search = beam_search(
            Expansion(output.log_probabilities[0], 0),
            width=width,
            length=self._length,
            end=self._tokenizer.end,
            length_penalty=self._length_penalty,
            on_certain=on_certain,
        )
        try:
            hypotheses = next(search)
            while True:
                rows = [hypothesis.state for hypothesis in hypotheses]
                output = yield DecodeStep([hypothesis.tokens[-1] for hypothesis in hypotheses], output.states[rows])
                hypotheses = search.send(
                    [Expansion(values, row) for row, values in enumerate(output.log_probabilities)]
                )
        except StopIteration as stop:
            found: list[Hypothesis[int]] = stop.value
            return found

    def _caption(self, hypothesis: Hypothesis[int]) -> str:
        return self._tokenizer.decode(hypothesis.tokens)

    def _word(self, token: int) -> str:
        return self._tokenizer.decode([token])


def usage(_: Description) -> dict[str, int]:
    """Return the images that an answer is about."""
    return {"images": 1}


class _WordStream:
    """The words of a growing caption, each once."""

    def __init__(self, word: Callable[[int], str]) -> None:
        self._word = word
        self._added = 0
        self._words: list[str] = []

    def __call__(self, tokens: Sequence[int]) -> None:
        """Add the words of these leading tokens that are new."""
        self._words += map(self._word, tokens[self._added :])
        self._added = len(tokens)

    def take(self) -> list[str]:
        """Return the words added since the last call."""
        words, self._words = self._words, []
        return words


def _setting(bundle: Bundle, name: str, least: int, most: int) -> float:
    """Return a number of the manifest's configuration. Raise BundleError if it is missing or out of its range."""
    found = bundle.manifest.config.get(name)
    if not isinstance(found, int | float) or not least <= found <= most:
        raise BundleError(f"{bundle.folder}: config: {name}: expected a number from {least} to {most}, found {found!r}")
    return found
