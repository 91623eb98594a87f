"""The captioner's predictor: photograph -> sentence, one word per scheduling step."""

import base64
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.bundle import Bundle
from app.errors import BundleError
from app.runtime.beam_search import Expansion, Hypothesis, beam_search
from app.runtime.families.confidence import UNSURE, Confidence, Signs, signs_of
from app.runtime.families.image_decoders import CaptionTag, ImageDecoder, Sight, StepOutput, open_decoder
from app.runtime.families.wording import Wording, WordStream
from app.runtime.fields import ANSWER, LogProbability, Probability, require_ranges
from app.runtime.onnx_session import Precision
from app.runtime.predictor import Partial, Resources, answer_all
from app.runtime.recurrent_engine import WEIGHTS, Floats
from app.text import Tokenizer

MAX_LENGTH: Final = 200  # words
MAX_LENGTH_PENALTY: Final = 10
MAX_STEP_ROWS: Final = 800  # hypotheses that one step extends: about 50 ms, search included

Beam = Annotated[int, Field(ge=1, le=10, description="Beam width: captions kept at each step of the search.")]
OtherCaptions = Annotated[int, Field(ge=0, le=9, description="Largest number of further captions per image.")]
Tags = Annotated[bool, Field(description="Use the object detector, if the model has one.")]
People = Annotated[Literal["any", "neutral"], Field(description="neutral: say person and people, and guess no gender.")]
Attention = Annotated[bool, Field(description="Return where each word looked, if the model attends.")]
Threshold = Annotated[
    Annotated[float, Field(ge=0, le=1)] | None,
    Field(description="Confidence below which there is no caption; by default the model's own."),
]


@dataclass(frozen=True, slots=True)
class Describe:
    """A request for a photograph's caption; see POST /captions."""

    content: bytes  # an encoded image
    name: str = "image"  # what errors call it
    beam: Beam = 3
    alternatives: OtherCaptions = 0
    tags: Tags = True
    people: People = "any"
    attention: Attention = False
    threshold: Threshold = None
    bulk: ClassVar[bool] = False
    slow: ClassVar[bool] = True  # a photograph takes long to decode


@dataclass(slots=True)
class OtherCaption:
    """A less likely caption."""

    caption: str
    log_probability: LogProbability


@dataclass(slots=True)
class CaptionLook:
    """A word of a caption, and where it looked."""

    text: str
    weights: Annotated[
        list[list[float]], Field(description="Weights of the cells of a grid over the whole image, rows from the top.")
    ]
    language: Annotated[float, Field(description="Share of the words before it; the rest is that of tags.")]


@dataclass(slots=True)
class Description:
    """The answer to Describe: the best caption, and its alternatives."""

    __pydantic_config__: ClassVar[ConfigDict] = ANSWER

    caption: Annotated[str | None, Field(description="Null below the threshold of confidence.")]
    log_probability: LogProbability
    alternatives: Annotated[
        list[OtherCaption], Field(description="In the order of the beam search's length-normalised score.")
    ]
    confidence: Annotated[
        Probability | None,
        Field(description="Probability that people would call the caption right; null: not calibrated."),
    ] = None
    reason: Annotated[str | None, Field(description="Why there is no caption.")] = None
    tags: Annotated[list[CaptionTag], Field(description="Detected objects, best first.")] = field(default_factory=list)
    words: Annotated[list[CaptionLook] | None, Field(description="With attention=true.")] = None
    signs: Annotated[SkipJsonSchema[Signs | None], Field(exclude=True)] = None  # of the confidence

    @property
    def text(self) -> str:
        """The caption or, without one, the reason and what may be seen."""
        if self.caption is not None:
            return self.caption
        labels = dict.fromkeys(tag.label for tag in self.tags)
        return f"{self.reason}; may show: {', '.join(labels)}" if labels else f"{self.reason}"


class DecodeStep(NamedTuple):
    """The hypotheses of one photograph that the next step extends by a word."""

    tokens: list[int]  # the last of each of n hypotheses
    states: Floats  # (n, S) before it


Steps: TypeAlias = Generator[DecodeStep, StepOutput, Description]


class Example:
    """An encoded photograph in decoding: the generator of its steps, the next one, and the words not yet returned."""

    def __init__(self, sight: Sight, steps: Steps, words: WordStream) -> None:
        self.sight = sight
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
        decoder: ImageDecoder,
        tokenizer: Tokenizer,
        *,
        precision: Precision,
        length: int,
        length_penalty: float,
        repeats: bool = True,
        confidence: Confidence | None = None,
    ) -> None:
        """`length`: the most words of a caption; `length_penalty`: see `app.runtime.beam_search`.

        Without `repeats` a caption has no pair of content words twice.
        """
        self.precision = precision
        self.decoder = decoder
        self._tokenizer = tokenizer
        self._wording = Wording(tokenizer.strings)
        self._length = length
        self._length_penalty = length_penalty
        self._repeats = repeats
        self._confidence = confidence

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> "CaptionsPredictor":
        """Open a bundle's graphs of this precision. Raise BundleError if they can't be run."""
        bundle.path(WEIGHTS)  # the graphs load it themselves, so it must be among the verified files
        decoder, calibration = open_decoder(bundle, precision, resources), bundle.manifest.calibration
        try:
            confidence = Confidence(calibration) if calibration else None
        except KeyError as error:
            raise BundleError(f"{bundle.folder}: calibration: expected {error}, found none") from error
        return cls(
            decoder,
            resources.tokenizer(bundle, decoder.words),
            precision=precision,
            length=int(_setting(bundle, "length", 1, MAX_LENGTH)),
            length_penalty=_setting(bundle, "length_penalty", 0, MAX_LENGTH_PENALTY),
            repeats=not decoder.attends,
            confidence=confidence,
        )

    def prepare(self, payload: Describe) -> Example:
        """Decode a photograph and run the CNN and the detector; the words are left to the steps.

        Batching photographs gains nothing in the CNN; several preprocessing threads do. Raise InvalidField for a number
        out of its range, Malformed for an undecodable image, TooLarge for too many pixels.
        """
        require_ranges(payload)
        sight = self.decoder.see(payload.content, payload.name, tags=payload.tags)
        words = WordStream(self._word)
        return Example(sight, self._describe(sight, payload, words), words)

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
        output = self._decode_all(active)
        end = 0
        for example in active:
            start, end = end, end + example.cost
            example.send(StepOutput(*(part[start:end] for part in output)))
        return [example.output() for example in examples]

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """Return [caption, log-probability] of the caption and its alternatives; `payload` has an `image` (base64)."""
        settings = {"threshold": 0.0} | payload | {"content": base64.b64decode(payload["image"])}
        del settings["image"]
        (found,) = answer_all(self, [self.prepare(Describe(**settings))])
        return [[each.caption, each.log_probability] for each in (found, *found.alternatives)]

    def _decode_all(self, examples: Sequence[Example]) -> StepOutput:
        """Run the next steps of all examples as one batch."""
        steps = [example.step for example in examples]
        tokens = [token for step in steps for token in step.tokens]
        owners = [owner for owner, step in enumerate(steps) for _ in step.tokens]
        states = np.concatenate([step.states for step in steps])
        output = self.decoder.decode(tokens, states, [example.sight for example in examples], owners)
        if self._tokenizer.unknown is not None:
            output.log_probabilities[:, self._tokenizer.unknown] = -np.inf
        return output

    def _describe(self, sight: Sight, payload: Describe, words: WordStream) -> Steps:
        """Search for the caption and alternatives; stream the caption's words.

        The caption is the best of a search of width `beam`, whatever the number of alternatives. Alternatives are the
        other results of that search or, if these are too few, those of a second, wider search.
        """
        neutral = payload.people == "neutral"
        first = yield DecodeStep([self._tokenizer.end], sight.state)
        totals: dict[tuple[int, ...], float] = {}
        best, *others = yield from self._search(first, payload.beam, words, neutral=neutral, totals=totals)
        words(best.tokens)
        score = max((tag.score for tag in sight.tags), default=0.0)
        signs = signs_of(best, others, totals, tag=score, flatness=sight.flatness, distance=sight.distance)
        if payload.alternatives >= payload.beam:
            wider = yield from self._search(first, payload.alternatives + 1, neutral=neutral)
            others = [hypothesis for hypothesis in wider if hypothesis.tokens != best.tokens]
        looks = None
        if payload.attention and self.decoder.attends:
            looks = yield from self._looks(first, best.tokens)
        confidence, reason = None, None
        if self._confidence:
            confidence = self._confidence(signs)
            reason = UNSURE if self._confidence.is_below(confidence, payload.threshold) else None
        return Description(
            None if reason else self._caption(best),
            best.log_probability,
            [OtherCaption(self._caption(each), each.log_probability) for each in others[: payload.alternatives]],
            confidence,
            reason,
            sight.tags,
            looks,
            signs,
        )

    def _looks(self, first: StepOutput, tokens: Sequence[int]) -> Generator[DecodeStep, StepOutput, list[CaptionLook]]:
        """Run the decoder over a caption again for the attention of each word."""
        output, looks = first, list[CaptionLook]()
        for position, token in enumerate(tokens):
            if position:
                output = yield DecodeStep([tokens[position - 1]], output.states)
            weights, language = self.decoder.look(output.attention[0])
            looks.append(CaptionLook(self._word(token), weights, language))
        return looks

    def _search(
        self,
        first: StepOutput,
        width: int,
        on_certain: Callable[[tuple[int, ...]], None] | None = None,
        *,
        neutral: bool,
        totals: dict[tuple[int, ...], float] | None = None,
    ) -> Generator[DecodeStep, StepOutput, list[Hypothesis[int]]]:
        """Run a beam search; a hypothesis's state is its row among the states of the last output.

        `totals` gets the log-probability of every unfinished hypothesis, by its tokens.
        """
        output = first
        search = beam_search(
            Expansion(self._allowed(output.log_probabilities, 0, (), neutral=neutral), 0),
            width=width,
            length=self._length,
            end=self._tokenizer.end,
            length_penalty=self._length_penalty,
            on_certain=on_certain,
        )
        try:
            hypotheses = next(search)
            while True:
                if totals is not None:
                    totals.update({each.tokens: each.log_probability for each in hypotheses})
                rows = [hypothesis.state for hypothesis in hypotheses]
                output = yield DecodeStep([hypothesis.tokens[-1] for hypothesis in hypotheses], output.states[rows])
                values = output.log_probabilities
                hypotheses = search.send(
                    [
                        Expansion(self._allowed(values, row, hypothesis.tokens, neutral=neutral), row)
                        for row, hypothesis in enumerate(hypotheses)
                    ]
                )
        except StopIteration as stop:
            found: list[Hypothesis[int]] = stop.value
            return found

    def _allowed(self, log_probabilities: Floats, row: int, tokens: Sequence[int], *, neutral: bool) -> Floats:
        """Return one row (V,) of log-probabilities with the words that may follow `tokens`."""
        values: Floats = log_probabilities[row]
        if neutral:
            values = self._wording.neutral(values)
        if not self._repeats and (barred := self._wording.repeating(tokens)):
            values = values.copy()
            values[barred] = -np.inf
        return values

    def _caption(self, hypothesis: Hypothesis[int]) -> str:
        return self._tokenizer.decode(hypothesis.tokens)

    def _word(self, token: int) -> str:
        return self._tokenizer.decode([token])


def _setting(bundle: Bundle, name: str, least: int, most: int) -> float:
    """Return a number of the manifest's configuration. Raise BundleError if it is missing or out of its range."""
    found = bundle.manifest.config.get(name)
    if not isinstance(found, int | float) or not least <= found <= most:
        raise BundleError(f"{bundle.folder}: config: {name}: expected a number from {least} to {most}, found {found!r}")
    return found
