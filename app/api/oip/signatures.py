"""The tensors of each model family, and the way from them to its payloads and answers.

To add a family, write a function from a `Call` to its outputs and add a line to `SIGNATURES`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from app import images as image_files
from app.api.http import uploads
from app.api.http.fan_out import all_answers
from app.api.http.image_answers import image_answers
from app.api.http.uploads import Upload
from app.api.native.vision import MAX_CAPTIONS, MAX_DIGITS
from app.api.oip import tensors
from app.api.oip.schemas import InferRequest
from app.api.oip.tensors import Spec, Values
from app.errors import InvalidField
from app.runtime.families.captions import Describe, Description
from app.runtime.families.digits import Classification, Classify
from app.runtime.families.language_model import Suggest, Suggestions
from app.runtime.families.numbers import MAX_DIGITS as MAX_LENGTH
from app.runtime.families.numbers import Number, ReadNumber
from app.runtime.preprocessing import Payload
from app.runtime.registry import Served
from app.runtime.scores import TextScore
from app.runtime.scoring import Score

MAX_TEXTS: Final = 256
REJECTED: Final = -1  # in place of a digit
NO_BOX: Final = -1  # in place of the left, top, width and height of a digit that a number has not


@dataclass(frozen=True)
class Call:
    """A validated request: the outputs to compute from the inputs."""

    served: Served
    request: InferRequest
    wanted: frozenset[str]  # names of outputs
    deadline: float  # a time of time.monotonic


@dataclass(frozen=True)
class Signature:
    """The tensors of a family; inputs of one name are alternatives."""

    inputs: Sequence[Spec]
    outputs: Sequence[Spec]
    infer: Callable[[Call], Awaitable[Mapping[str, Values]]]  # at least the wanted outputs


async def _language_model(call: Call) -> Mapping[str, Values]:
    """Return scores and suggestions of texts (N,), those that are wanted."""
    tensor, parameters = call.request.inputs[0], call.request.parameters
    tensors.require(tensor, TEXT.inputs, MAX_TEXTS)
    texts = tensors.texts(tensor)
    submits: list[Callable[[], Awaitable[Any]]] = []
    if call.wanted & {"perplexity", "log_likelihood", "tokens"}:
        names = [tensors.element_name(tensor, index) for index in range(len(texts))]
        submits += [
            partial(_score, call, Score(text, parameters.mode), name) for text, name in zip(texts, names, strict=True)
        ]
    if call.wanted & {"suggestions", "probabilities"}:
        answer = partial(call.served.answer, deadline=call.deadline, bulk=len(texts) > 1)
        submits += [partial(answer, Suggest(text, parameters.top_k, complete=parameters.complete)) for text in texts]
    answers = await all_answers(submits, call.deadline)
    outputs: dict[str, Values] = {}
    scores: list[TextScore] = [answer for answer in answers if isinstance(answer, TextScore)]
    if scores:
        outputs["perplexity"] = np.array([score.perplexity for score in scores])
        outputs["log_likelihood"] = np.array([score.log_likelihood for score in scores])
        outputs["tokens"] = np.array([score.tokens for score in scores])
    found: list[Suggestions] = [answer for answer in answers if isinstance(answer, Suggestions)]
    if found:
        shape = (len(found), parameters.top_k)
        outputs["suggestions"], outputs["probabilities"] = words, values = np.full(shape, "", object), np.zeros(shape)
        for row, each in enumerate(found):
            for column, suggestion in enumerate(each.suggestions):
                words[row, column], values[row, column] = suggestion.text, suggestion.probability
    return outputs


async def _score(call: Call, payload: Score, name: str) -> TextScore:
    score: TextScore = await call.served.answer(payload, deadline=call.deadline)
    if not score.tokens:
        raise InvalidField(name, "expected a text with words, found none")
    return score


async def _digits(call: Call) -> Mapping[str, Values]:
    found: list[Classification] = await _of_images(call, MAX_DIGITS, Classify)
    return {
        "digit": np.array([REJECTED if one.digit is None else one.digit for one in found]),
        "confidence": np.array([one.confidence for one in found]),
        "probabilities": np.array([one.probabilities for one in found]),
    }


async def _numbers(call: Call) -> Mapping[str, Values]:
    """Return numbers (N,) and, padded to MAX_DIGITS a number, the confidence and the box of each digit."""
    found: list[Number] = await _of_images(call, MAX_DIGITS, ReadNumber)
    confidences = np.zeros((len(found), MAX_LENGTH))
    boxes = np.full((len(found), MAX_LENGTH, 4), NO_BOX)
    for row, one in enumerate(found):
        for column, each in enumerate(one.digits):
            confidences[row, column], boxes[row, column] = each.confidence, each.box
    return {
        "number": [one.number or "" for one in found],
        "confidence": np.array([one.confidence for one in found]),
        "digit_confidences": confidences,
        "boxes": boxes,
    }


async def _captions(call: Call) -> Mapping[str, Values]:
    describe = partial(Describe, beam=call.request.parameters.beam)
    found: list[Description] = await _of_images(call, MAX_CAPTIONS, describe)
    return {
        "caption": [one.text for one in found],
        "log_probability": np.array([one.log_probability for one in found]),
    }


async def _of_images(call: Call, max_images: int, make: Callable[[bytes, str], Payload]) -> list[Any]:
    """Return the answers to the images of the request, decoded where /digits and /captions decode theirs."""
    tensor = call.request.inputs[0]
    spec = tensors.require(tensor, IMAGES, max_images)
    if spec.datatype == "BYTES":
        files = await tensors.contents(tensor)
    else:
        pixels = tensors.pixels(tensor)
        files = await asyncio.to_thread(lambda: [image_files.png(one) for one in pixels])
    images: list[Upload] = [
        uploads.of_bytes(tensors.element_name(tensor, index), content) for index, content in enumerate(files)
    ]
    return await image_answers(call.served, images, make, call.deadline)


IMAGES: Final = (
    Spec("image", "BYTES", (-1,)),
    Spec("image", "UINT8", (-1, -1, -1)),
    Spec("image", "UINT8", (-1, -1, -1, 3)),
)
TEXT: Final = Signature(
    (Spec("text", "BYTES", (-1,)),),
    (
        Spec("perplexity", "FP64", (-1,)),
        Spec("log_likelihood", "FP64", (-1,)),
        Spec("tokens", "INT64", (-1,)),
        Spec("suggestions", "BYTES", (-1, -1)),
        Spec("probabilities", "FP64", (-1, -1)),
    ),
    _language_model,
)
SIGNATURES: Final[Mapping[str, Signature]] = {
    "language_model": TEXT,
    "digits": Signature(
        IMAGES,
        (Spec("digit", "INT64", (-1,)), Spec("confidence", "FP64", (-1,)), Spec("probabilities", "FP64", (-1, 10))),
        _digits,
    ),
    "numbers": Signature(
        IMAGES,
        (
            Spec("number", "BYTES", (-1,)),
            Spec("confidence", "FP64", (-1,)),
            Spec("digit_confidences", "FP64", (-1, MAX_LENGTH)),
            Spec("boxes", "INT64", (-1, MAX_LENGTH, 4)),
        ),
        _numbers,
    ),
    "captions": Signature(IMAGES, (Spec("caption", "BYTES", (-1,)), Spec("log_probability", "FP64", (-1,))), _captions),
}  # by family; another one has no tensors
