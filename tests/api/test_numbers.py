"""Numbers of several digits in every API."""

from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from app.images import decoded
from app.main import create_app
from app.runtime.families.numbers import Number, NumberDigit
from app.runtime.registry import Registry
from app.settings import Settings
from tests.api.conftest import FakeRegistry, FakeServed, connect
from tests.api.native.test_vision import FakeVision, parts, png

pytestmark = pytest.mark.anyio
NUMBERS = [
    Number("42", 0.75, [NumberDigit(4, 0.9, [1, 2, 3, 4]), NumberDigit(2, 0.8, [5, 2, 3, 4])], None),
    Number(None, 0.1, [], "no number to be read"),
]


class OfFamilies(FakeRegistry):
    """A registry of fakes, each of its manifest's family."""

    get = Registry.get


async def number(payload: Any, deadline: float | None) -> Number:
    """The first number if the first pixel is dark, else the other."""
    return NUMBERS[int(np.asarray(decoded(payload.content))[0, 0, 0] > 99)]


async def post(served: FakeServed, family: str, path: str, **body: Any) -> httpx.Response:
    manifest = served.bundle.manifest.model_copy(update={"family": family})
    fake = FakeVision(family, replace(served.bundle, manifest=manifest))
    fake.answering = number if family == "numbers" else fake.answering
    async with connect(create_app(Settings(), OfFamilies(fake))) as client:
        answer = await client.post(path, **body)
    assert answer.status_code == 200 or not fake.prepared_names
    return answer


async def test_a_number_without_a_reader_is_refused_before_an_image_is_decoded(served: FakeServed) -> None:
    assert (await post(served, "digits", "/digits", files=parts(png()))).status_code == 200
    refused = await post(served, "digits", "/digits?number=true", files=parts(png()))
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
    assert "numbers" in refused.json()["detail"]


async def test_hugging_face_s_answer_is_the_number_as_text(served: FakeServed) -> None:
    answer = await post(served, "numbers", "/models/numbers", content=png())
    assert answer.json() == [{"generated_text": "42"}]


async def test_tensors_hold_numbers_and_padded_boxes(served: FakeServed) -> None:
    pixels = {"name": "image", "shape": [2, 1, 2], "datatype": "UINT8", "data": [0, 255, 255, 0]}
    answer = await post(served, "numbers", "/v2/models/numbers/infer", json={"inputs": [pixels]})
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    assert outputs["number"]["data"] == ["42", ""]
    assert outputs["confidence"]["data"] == [0.75, 0.1]
    assert outputs["boxes"]["shape"] == [2, 12, 4]
    assert outputs["boxes"]["data"] == [1, 2, 3, 4, 5, 2, 3, 4] + [-1] * (2 * 48 - 8)
    assert outputs["digit_confidences"]["data"] == [0.9, 0.8] + [0] * 22
