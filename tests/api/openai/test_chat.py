"""POST /v1/chat/completions: captions."""

import json
from base64 import b64encode
from typing import Any

import numpy as np
import pytest

from app.images import png
from tests.api.published import Client

SCENES = [png((np.add.outer(np.arange(240) * step, np.arange(320)) % 256).astype(np.uint8)) for step in (1, 3)]
PNG = {"Content-Type": "image/png"}


def part(image: bytes) -> dict[str, Any]:
    url = f"data:text/plain;base64,{b64encode(image).decode()}"  # any media type
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    text = {"type": "text", "text": "What is this?"}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [text, *parts]}]
    return {"messages": messages, **fields}


def answer(client: Client, fields: dict[str, Any]) -> Any:
    found = client.post("/v1/chat/completions", json=fields)
    assert found.status_code == 200, found.text
    return found.json()


def captions(client: Client) -> list[str]:
    return [client.post("/captions", content=image, headers=PNG).json()["results"][0]["caption"] for image in SCENES]


def streamed(client: Client, fields: dict[str, Any]) -> list[dict[str, Any]]:
    found = client.post("/v1/chat/completions", json={"stream": True, **fields})
    *events, done, _ = found.text.split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_images_are_captioned_a_line_each(client: Client) -> None:
    expected = "\n".join(captions(client))
    ignored = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["a"], "presence_penalty": 1, "made_up": 1}
    found = answer(client, chat(*map(part, SCENES), **ignored))
    assert (found["object"], found["model"]) == ("chat.completion", "captions")
    assert found["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert found["usage"]["completion_tokens"] == len(expected.split())
    chunks = [chunk["choices"][0] for chunk in streamed(client, chat(*map(part, SCENES)))]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == expected
    assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
    assert (chunks[-1]["delta"], chunks[-1]["finish_reason"]) == ({}, "stop")
    assert len(chunks) == 2 + len(expected.split())


def test_words_are_limited(client: Client) -> None:
    caption = captions(client)[0]
    expected = " ".join(caption.split()[:2])
    for field in ("max_tokens", "max_completion_tokens"):
        choice = answer(client, chat(part(SCENES[0]), **{field: 2}))["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "length")
    chunks = streamed(client, chat(part(SCENES[0]), max_tokens=2, stream_options={"include_usage": True}))
    contents = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert ("".join(contents), chunks[-2]["choices"][0]["finish_reason"]) == (expected, "length")
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    for many in (len(caption.split()), 10**6, 2**40):
        choice = answer(client, chat(part(SCENES[0]), max_tokens=many))["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (caption, "stop")


def test_a_chat_without_an_image_is_answered_with_the_usage(client: Client) -> None:
    messages: list[list[Any]] = [[{"role": "user", "content": "Hi"}], [], [1]]
    for fields in (chat(), *({"messages": each} for each in messages)):
        assert "image_url" in answer(client, fields)["choices"][0]["message"]["content"]
    chunks = streamed(client, chat())
    assert "image_url" in chunks[1]["choices"][0]["delta"]["content"]


ADDRESS = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (chat(ADDRESS), "messages"),
        (chat({"type": "image_url", "image_url": 1}), "messages"),
        (chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}), "messages"),
        (chat(*[part(b"")] * 9), "messages"),
        ({"messages": "Hi"}, "messages"),
        ({}, "messages"),
        (chat(n=2), "n"),
        (chat(tools=[TOOL]), "tools"),
        (chat(functions=[TOOL]), "functions"),
        (chat(response_format={"type": "json_object"}), "response_format"),
        (chat(logprobs=True), "logprobs"),
        (chat(audio={"voice": "a"}), "audio"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(model="ptb"), "model"),
    ],
)
def test_a_field_that_can_not_be_honoured_is_rejected_by_name(
    client: Client, fields: dict[str, Any], param: str
) -> None:
    found = client.post("/v1/chat/completions", json=fields)
    assert (found.status_code, found.json()["error"]["param"]) == (400, param)


def test_a_damaged_image_is_malformed(client: Client) -> None:
    found = client.post("/v1/chat/completions", json=chat(part(SCENES[0]), part(b"no image")))
    assert (found.status_code, found.json()["error"]["message"].partition(":")[0]) == (400, "image.1")
    assert client.post("/v1/chat/completions", json=chat(model="digits")).status_code == 404
