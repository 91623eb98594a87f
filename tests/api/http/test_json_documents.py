"""Documents as large as a client likes."""

import json
from typing import Any

import pytest

from app.api.http.bodies import INLINE_BYTES
from app.api.http.json_documents import MAX_VALUES, decoded
from app.errors import Malformed, TooLarge
from tests.api.conftest import FakeServed, connect, service

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("most", "rejected"), [(6, False), (5, True)])
def test_values_of_lists_and_objects_are_counted_together(most: int, rejected: bool) -> None:
    content = json.dumps({"a": [1, [2]], "b": {"c": "[,,,,,]"}}).encode()
    if rejected:
        with pytest.raises(TooLarge, match="expected at most 5 values"):
            decoded(content, most)
    else:
        assert decoded(content, most) == json.loads(content)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": "profits rose " * INLINE_BYTES}, 200),
        ({"text": "\u00e9\U0001f600" * INLINE_BYTES}, 200),
        ({"text": "a", "x": [1] * (MAX_VALUES - 1)}, 413),
        ({"text": "a", "x": [1] * (MAX_VALUES - 2)}, 422),
        (dict.fromkeys(map(str, range(INLINE_BYTES)), 1), 422),
    ],
)
async def test_large_and_small_documents_are_decoded_alike(served: FakeServed, body: Any, status: int) -> None:
    async with connect(service(served)) as client:
        answer = await client.post("/perplexity", json=body)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["results"][0]["characters"] == len(body["text"])


@pytest.mark.parametrize("content", [b"[" * 2 * INLINE_BYTES, b'{"text": "' + b"\xff" * INLINE_BYTES, b"\0" * 2**20])
async def test_an_invalid_large_document_is_a_problem(served: FakeServed, content: bytes) -> None:
    with pytest.raises(Malformed):
        decoded(content)
    async with connect(service(served)) as client:
        answer = await client.post("/perplexity", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed")
