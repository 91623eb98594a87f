"""The package tritonclient, over HTTP."""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tritonclient import http
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from .conftest import Server
from .native import ONE, ONE_ROWS, SCENE, perplexity, post

TEXT = "the company said it expects to report a loss\nthe dollar fell N N against the yen\n"


@pytest.fixture
def client(server: Server) -> Any:
    return http.InferenceServerClient(server.url.partition("://")[2], network_timeout=60)


@pytest.fixture
def key(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.key}"}


def given(name: str, values: Any, datatype: str, *, binary: bool = True) -> Any:
    array = np.array(values, object if datatype == "BYTES" else datatype.lower())
    found = http.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def test_the_server_and_its_models_are_described(client: Any, key: dict[str, str]) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("ptb", headers={**key})
    assert client.is_model_ready("ptb", metadata["versions"][0], headers={**key})
    assert not client.is_model_ready("none", headers={**key})
    assert client.get_model_config("digits", headers={**key})["backend"] == "seqserve"
    assert [model["name"] for model in client.get_model_repository_index(headers={**key})] == [
        "captions",
        "digits",
        "everyday",
        "numbers",
        "ptb",
    ]
    (statistics,) = client.get_inference_statistics("ptb", headers={**key})["model_stats"]
    assert statistics["inference_stats"]["fail"]["count"] == 0


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_texts_are_scored_and_continued(
    client: Any, server: Server, key: dict[str, str], binary: bool, compression: str | None
) -> None:
    inputs = [given("text", [TEXT, "the dollar"], "BYTES", binary=binary)]
    answer = client.infer(
        "ptb",
        inputs,
        headers={**key},
        parameters={"top_k": 2},
        request_id="7",
        request_compression_algorithm=compression,
    )
    assert answer.get_response()["id"] == "7"
    assert answer.as_numpy("log_likelihood")[0] == perplexity(server, TEXT)["log_likelihood"]
    assert answer.as_numpy("suggestions").shape == answer.as_numpy("probabilities").shape == (2, 2)


def test_images_are_read_as_files_and_as_pixels(client: Any, server: Server, key: dict[str, str]) -> None:
    digit = post(server, "/digits", ONE)["results"][0]["digit"]
    for tensor in (given("image", [ONE], "BYTES"), given("image", [ONE_ROWS], "UINT8")):
        assert client.infer("digits", [tensor], headers={**key}).as_numpy("digit").tolist() == [digit]
    caption = post(server, "/captions", SCENE)["results"][0]["caption"].encode()
    encoded = b64encode(SCENE).decode()
    for tensor in (given("image", [SCENE], "BYTES"), given("image", [encoded], "BYTES", binary=False)):
        assert client.infer("captions", [tensor], headers={**key}).as_numpy("caption").tolist() == [caption]


def test_errors_are_readable(client: Any, key: dict[str, str]) -> None:
    text = given("text", ["a"], "BYTES")
    wrong: list[Callable[[], Any]] = [
        lambda: client.infer("none", [text], headers={**key}),
        lambda: client.infer("ptb", [given("texts", ["a"], "BYTES")], headers={**key}),
        lambda: client.infer("ptb", [text], headers={**key}, outputs=[http.InferRequestedOutput("logits")]),
        lambda: client.infer("ptb", [text], headers={**key}, sequence_id=5, sequence_start=True),
        lambda: client.infer("captions", [given("image", [b"no image"], "BYTES")], headers={**key}),
        lambda: client.get_trace_settings(headers={**key}),
        lambda: client.infer("ptb", [text]),
    ]
    for ask in wrong:
        with pytest.raises(InferenceServerException) as error:
            ask()
        assert error.value.status() in ("400", "401", "404")
        assert "occurred in the client" not in error.value.message()


def test_the_asynchronous_client(server: Server, key: dict[str, str]) -> None:
    async def ask() -> Any:
        async with aio.InferenceServerClient(server.url.partition("://")[2]) as client:
            tensor = aio.InferInput("text", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([TEXT], object))
            return (await client.infer("ptb", [tensor], headers={**key})).as_numpy("tokens")

    assert asyncio.run(ask()).tolist() == [perplexity(server, TEXT)["tokens"]]
