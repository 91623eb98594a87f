"""The captioner's predictor: a photograph in, a sentence out, a word a turn.

Three graphs (made by `training.captions.export`), the first in float32 alone:

    cnn     pixels (B, 224, 224, 3) uint8 -> features (B, F)
    begin   features (B, F) -> state (B, S)
    step    tokens (B,) int64, state (B, S) -> log_probabilities (B, V), state_after (B, S)
"""

import base64
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.bundle import Bundle
from app.errors import BundleError, InvalidField
from app.images import PHOTO_SIZE, decoded, photo
from app.runtime.beam_search import Expansion, Hypothesis, beam_search
from app.runtime.onnx_session import Precision, session
from app.runtime.recurrent_engine import WEIGHTS, Floats
from app.runtime.scheduler import Resources, answer_all
from app.text import Tokenizer, Vocabulary, make_tokenizer

MOST_BEAMS: Final = 10
MOST_ALTERNATIVES: Final = 9
TURN: Final = 800  # rows of a step that all examples may have in a turn: about 50 ms, with their share of the search


@dataclass(frozen=True, slots=True)
class Describe:
    """What is to be seen on this photograph? See POST /captions."""

    content: bytes  # an encoded image
    name: str = "image"  # what errors call it
    beam: int = 3  # captions kept in view while one is made
    alternatives: int = 0  # further captions wanted
    on_word: Callable[[str], None] | None = None  # told each certain word, in the thread of predict; must not raise
    slow: ClassVar[bool] = True  # decoding a photograph takes long

    def require_ranges(self) -> None:
        """Raise InvalidField for a number that no search is made for."""
        _require("beam", self.beam, 1, MOST_BEAMS)
        _require("alternatives", self.alternatives, 0, MOST_ALTERNATIVES)


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another caption."""

    caption: str
    log_probability: float  # nats, its end included


@dataclass(frozen=True, slots=True)
class Description:
    """The answer to Describe."""

    caption: str
    log_probability: float  # nats, its end included
    alternatives: list[Alternative]  # best first


class Steps(NamedTuple):
    """Captions of one photograph that want their next word."""

    tokens: list[int]  # the last of each
    states: Floats  # (n, S) before it


class Said(NamedTuple):
    """What came of Steps."""

    log_probabilities: Floats  # (n, V) of the next word
    states: Floats  # (n, S) after the last


Turns: TypeAlias = Generator[Steps, Said, Description]


class Example:
    """A photograph, looked at, on its way to its caption: its turns, and what it wants of the next."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.wanted = next(turns)
        self.answer: Description | None = None

    @property
    def cost(self) -> int:
        """What its next turn costs, in rows of a step."""
        return len(self.wanted.tokens)

    def take(self, said: Said) -> None:
        """Go on with what was said."""
        try:
            self.wanted = self._turns.send(said)
        except StopIteration as stop:
            self.answer = stop.value


class CaptionsPredictor:
    """Describes photographs with one model (the seam `Predictor`)."""

    # nats of a caption; what processors' sums differ by, seven digits down, int8's rounding may make 0.015 of
    PROBE_TOLERANCE: ClassVar[float] = 0.05
    fits_inline: ClassVar[None] = None

    def __init__(
        self,
        cnn: ort.InferenceSession,
        begin: ort.InferenceSession,
        step: ort.InferenceSession,
        vocabulary: Vocabulary,
        tokenizer: Tokenizer,
        *,
        precision: Precision,
        length: int,
        length_penalty: float,
    ) -> None:
        """`length`: words of a caption at most; `length_penalty`: see `app.runtime.beam_search`."""
        self.precision = precision
        self.vocabulary = vocabulary
        self._cnn = cnn
        self._begin = begin
        self._step = step
        self._tokenizer = tokenizer
        self._length = length
        self._length_penalty = length_penalty

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> "CaptionsPredictor":
        """The predictor of a bundle, on its graphs of this precision. Raise BundleError if they can't be run."""
        bundle.path(WEIGHTS)  # the graphs read it on their own, so it must be among the verified files
        graphs = ("cnn.fp32.onnx", f"begin.{precision}.onnx", f"step.{precision}.onnx")
        cnn, begin, step = (session(bundle.path(graph), resources.threads) for graph in graphs)
        vocabulary = Vocabulary(bundle.text("vocabulary.txt").split("\n"))
        words = step.get_outputs()[0].shape[1]
        if len(vocabulary) != words:
            raise BundleError(f"{bundle.path('vocabulary.txt')}: expected {words} words, found {len(vocabulary)}")
        return cls(
            cnn,
            begin,
            step,
            vocabulary,
            make_tokenizer(bundle.manifest.normalisation or "whitespace", vocabulary),
            precision=precision,
            length=bundle.manifest.config["length"],
            length_penalty=bundle.manifest.config["length_penalty"],
        )

    def prepare(self, payload: Describe) -> Example:
        """Decode a photograph and look at it; the words are left to the turns.

        Photographs gain nothing by being looked at together, but by several threads that prepare. Raise InvalidField
        for a number out of its range, Malformed for what is no image, TooLarge for too many pixels.
        """
        payload.require_ranges()
        pixels = photo(decoded(payload.content, name=payload.name, least=PHOTO_SIZE))
        return Example(self._describe(self.begin(self.features(pixels[None])), payload))

    def predict(self, examples: Sequence[Example]) -> list[Description | None]:
        """One turn for each: its caption, or None if it wants another.

        A turn says the next word of all of a photograph's beams; those of all examples are one batch. The first example
        is always served, the others in their order; what would make the turn longer than TURN is left for the next.
        """
        served, room = list[Example](), TURN
        for example in examples:
            if not served or example.cost <= room:
                served.append(example)
                room -= example.cost
        steps = [example.wanted for example in served]
        log_probabilities, states = self._say(steps)
        end = 0
        for example, step in zip(served, steps, strict=True):
            start, end = end, end + len(step.tokens)
            example.take(Said(log_probabilities[start:end], states[start:end]))
        return [example.answer for example in examples]

    def features(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """What the network sees of photographs: (B, 224, 224, 3) -> (B, F)."""
        # One at a time: what passes between the layers stays in the processor's cache.
        return np.concatenate([self._cnn.run(None, {"pixels": one[None]})[0] for one in pixels])

    def begin(self, features: Floats) -> Floats:
        """(B, F) -> the states (B, S) before the first word."""
        state: Floats = self._begin.run(None, {"features": features})[0]
        return state

    def step(self, tokens: Sequence[int], states: Floats) -> Said:
        """The words (B,) that come next in states (B, S) -> what may follow them."""
        return Said(*self._step.run(None, {"tokens": np.array(tokens, np.int64), "state": states}))

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """[caption, log-probability] of the caption and each alternative for the `image` (base64) of `payload`."""
        settings = payload | {"content": base64.b64decode(payload["image"])}
        del settings["image"]
        (found,) = answer_all(self, [self.prepare(Describe(**settings))])
        return [[each.caption, each.log_probability] for each in (found, *found.alternatives)]

    def _say(self, steps: Sequence[Steps]) -> Said:
        """All steps as one batch."""
        tokens = list(chain.from_iterable(step.tokens for step in steps))
        said = self.step(tokens, np.concatenate([step.states for step in steps]))
        said.log_probabilities[:, self.vocabulary.unknown] = -np.inf
        return said

    def _describe(self, state: Floats, payload: Describe) -> Turns:
        """The caption is what a search of `beam` finds from the first state (1, S) on, whatever else is asked for.

        The alternatives are what else that search has kept or, if these would be too few, what a second one finds that
        is wide enough.
        """
        first = yield Steps([self.vocabulary.end], state)
        telling = _Telling(self._word, payload.on_word) if payload.on_word else None
        best, *others = yield from self._search(first, payload.beam, telling)
        if telling:
            telling(best.tokens)
        if payload.alternatives >= payload.beam:
            wider = yield from self._search(first, payload.alternatives + 1)
            others = [hypothesis for hypothesis in wider if hypothesis.tokens != best.tokens]
        return Description(
            self._caption(best),
            best.log_probability,
            [Alternative(self._caption(each), each.log_probability) for each in others[: payload.alternatives]],
        )

    def _search(
        self, first: Said, width: int, on_certain: Callable[[tuple[int, ...]], None] | None = None
    ) -> Generator[Steps, Said, list[Hypothesis[int]]]:
        """Hypotheses keep the number of the row that their state has among those of the last step."""
        said = first
        search = beam_search(
            Expansion(said.log_probabilities[0], 0),
            width=width,
            length=self._length,
            end=self.vocabulary.end,
            length_penalty=self._length_penalty,
            on_certain=on_certain,
        )
        try:
            hypotheses = next(search)
            while True:
                rows = [hypothesis.state for hypothesis in hypotheses]
                said = yield Steps([hypothesis.tokens[-1] for hypothesis in hypotheses], said.states[rows])
                hypotheses = search.send([Expansion(values, row) for row, values in enumerate(said.log_probabilities)])
        except StopIteration as stop:
            found: list[Hypothesis[int]] = stop.value
            return found

    def _caption(self, hypothesis: Hypothesis[int]) -> str:
        return self._tokenizer.join([self.vocabulary.tokens[token] for token in hypothesis.tokens])

    def _word(self, token: int) -> str:
        return self._tokenizer.join([self.vocabulary.tokens[token]])


class _Telling:
    """Tells each word of a caption once, as the caption grows."""

    def __init__(self, word: Callable[[int], str], on_word: Callable[[str], None]) -> None:
        self._word = word
        self._on_word = on_word
        self._told = 0

    def __call__(self, tokens: tuple[int, ...]) -> None:
        """Tell what of these leading tokens has not been told."""
        for token in tokens[self._told :]:
            self._on_word(self._word(token))
        self._told = len(tokens)


def _require(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidField(field, f"expected {least} to {most}, found {value}")
