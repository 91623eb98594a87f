"""POST /models/{model}, as huggingface_hub sends it."""

from base64 import b64encode
from typing import Any

import numpy as np
import pytest

from app.images import png
from tests.api.published import Client
from tests.drawn_digits import draw

IMAGE = png(np.kron(draw(1, np.random.default_rng(1)), np.ones((4, 4), np.uint8)))
SCENE = png((np.add.outer(np.arange(240), np.arange(320)) % 256).astype(np.uint8))
PNG = {"Content-Type": "image/png"}


def test_a_photograph_is_captioned(client: Client) -> None:
    native = client.post("/captions", content=SCENE, headers=PNG).json()["results"][0]["caption"]
    options: list[dict[str, Any]] = [
        {"content": SCENE},
        {"content": SCENE, "headers": PNG},
        {"json": {"inputs": b64encode(SCENE).decode(), "parameters": {"max_new_tokens": 20}, "made_up": None}},
    ]
    for each in options:
        assert client.post("/models/captions", **each).json() == [{"generated_text": native}]


def test_a_digit_is_classified(client: Client) -> None:
    native = client.post("/digits", content=IMAGE, headers=PNG).json()["results"][0]
    found = client.post("/models/digits", content=IMAGE).json()
    assert found[0] == {"label": "1", "score": max(native["probabilities"])}
    assert [one["score"] for one in found] == sorted(native["probabilities"], reverse=True)[:5]
    fields = {"inputs": b64encode(IMAGE).decode(), "parameters": {"top_k": 3}}
    assert client.post("/models/digits", json=fields).json() == found[:3]
    white = png(np.full((28, 28), 255, np.uint8))
    assert client.post("/models/digits", content=white).json() == []


@pytest.mark.parametrize(
    ("model", "options", "status", "message"),
    [
        ("captions", {"content": b"no image"}, 400, "image: expected PNG"),
        ("captions", {"content": b""}, 400, "image: expected an image, found nothing"),
        ("captions", {"json": {"inputs": "!"}}, 400, "inputs: expected an image in base64"),
        ("captions", {"json": {"inputs": 1}}, 400, "inputs"),
        ("captions", {"json": {}}, 400, "inputs: expected a value, found none"),
        ("digits", {"json": {"inputs": "", "parameters": {"top_k": 0}}}, 400, "parameters.top_k: "),
        ("ptb", {"content": IMAGE}, 400, "model: expected a model of images, found the language_model ptb: POST /v1/"),
        ("none", {"content": IMAGE}, 404, "none: no such model"),
        ("captions", {"content": b"a", "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type: expected"),
    ],
)
def test_an_error_is_words(client: Client, model: str, options: dict[str, Any], status: int, message: str) -> None:
    answer = client.post(f"/models/{model}", **options)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert answer.json()["error"].startswith(message)


def test_the_other_methods_of_the_path_are_native(client: Client) -> None:
    assert client.get("/models/captions").json()["name"] == "captions"
    assert client.get("/models/none").headers["content-type"] == "application/problem+json"
