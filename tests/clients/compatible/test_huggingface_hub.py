"""The package huggingface_hub."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from .conftest import Server
from .native import ONE, SCENE, post


def hub(server: Server, model: str) -> Any:
    return InferenceClient(model=f"{server.url}/models/{model}", token=server.key)


def test_an_image_is_captioned(server: Server, tmp_path: Path) -> None:
    caption = post(server, "/captions", SCENE)["results"][0]["caption"]
    (tmp_path / "scene.png").write_bytes(SCENE)
    for image in (SCENE, str(tmp_path / "scene.png")):
        assert hub(server, "captions").image_to_text(image).generated_text == caption


@pytest.mark.parametrize("options", [{}, {"top_k": 3}])
def test_a_digit_is_classified(server: Server, options: dict[str, int]) -> None:
    expected = post(server, "/digits", ONE)["results"][0]
    found = hub(server, "digits").image_classification(ONE, **options)
    scores = sorted(expected["probabilities"], reverse=True)[: options.get("top_k", 5)]
    assert (found[0].label, [one.score for one in found]) == (str(expected["digit"]), scores)


def test_chat_completion(server: Server) -> None:
    url = "data:image/png;base64," + b64encode(SCENE).decode()
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    client = InferenceClient(base_url=f"{server.url}/v1", api_key=server.key)
    found = client.chat_completion(model="captions", messages=messages)
    assert found.choices[0].message.content == post(server, "/captions", SCENE)["results"][0]["caption"]


def test_an_error_is_words(server: Server) -> None:
    with pytest.raises(HfHubHTTPError, match="image: expected PNG"):
        hub(server, "captions").image_to_text(b"no image")
