"""POST /v2/models/{model}/infer: tensors in JSON and in binary."""

import gzip
import json
import struct
import zlib
from base64 import b64encode
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.oip.tensors import place
from app.errors import InvalidField
from app.images import png
from tests.api.published import Client
from tests.drawn_digits import draw

TEXT: Final = "the company said it expects to report a loss\nfor the third quarter\n"
LENGTH: Final = "Inference-Header-Content-Length"
IMAGE: Final = np.kron(draw(1, np.random.default_rng(1)), np.ones((4, 4), np.uint8))
SCENE: Final = (np.add.outer(np.arange(240), np.arange(320)) % 256).astype(np.uint8)


def tensor(name: str, values: list[Any], datatype: str = "BYTES", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(np.shape(values)), "datatype": datatype, "data": values, **more}


def prefixed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary(fields: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    """Return the options of a request whose inputs have these binary tensors."""
    for each, content in zip(fields["inputs"], tensors, strict=True):
        each.pop("data", None)
        each["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps(fields).encode()
    return {"content": b"".join([head, *tensors]), "headers": {LENGTH: str(len(head))}}


def infer(client: Client, model: str, *inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the outputs by name."""
    answer = client.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **fields})
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def error(client: Client, model: str = "ptb", **options: Any) -> str:
    answer = client.post(f"/v2/models/{model}/infer", **options)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    (message,) = answer.json().values()
    return str(message)


def test_texts_have_the_numbers_of_the_native_routes(client: Client) -> None:
    native = client.post("/perplexity", json={"model": "ptb", "texts": [TEXT, "a"]}).json()["results"]
    suggested = client.post("/next-word", json={"model": "ptb", "text": TEXT, "top_k": 3}).json()["suggestions"]
    found = infer(client, "ptb", tensor("text", [TEXT, "a"]), parameters={"top_k": 3})
    for name in ("perplexity", "log_likelihood", "tokens"):
        assert found[name]["data"] == [score[name] for score in native]
    assert found["suggestions"]["shape"] == found["probabilities"]["shape"] == [2, 3]
    assert found["suggestions"]["data"][:3] == [one["text"] for one in suggested]
    assert found["probabilities"]["data"][:3] == [one["probability"] for one in suggested]


def test_binary_tensors_have_the_same_numbers(client: Client) -> None:
    fields: dict[str, Any] = {"id": "7", "inputs": [tensor("text", [TEXT])], "parameters": {"binary_data_output": True}}
    expected = infer(client, "ptb", *fields["inputs"])
    answer = client.post("/v2/models/ptb/infer", **binary(fields, prefixed(TEXT.encode())))
    size = int(answer.headers[LENGTH])
    head, rest = json.loads(answer.content[:size]), answer.content[size:]
    assert (head["id"], answer.headers["content-type"]) == ("7", "application/octet-stream")
    outputs = {}
    for output in head["outputs"]:
        length = output["parameters"]["binary_data_size"]
        outputs[output["name"]], rest = rest[:length], rest[length:]
    assert not rest
    assert struct.unpack("<d", outputs["log_likelihood"])[0] == expected["log_likelihood"]["data"][0]
    assert struct.unpack("<q", outputs["tokens"])[0] == expected["tokens"]["data"][0]
    assert outputs["suggestions"] == prefixed(*(text.encode() for text in expected["suggestions"]["data"]))


def test_only_requested_outputs_are_computed(client: Client) -> None:
    fields = {"outputs": [{"name": "suggestions"}], "parameters": {"complete": True, "top_k": 2}}
    found = infer(client, "ptb", tensor("text", ["", "the comp"]), **fields)  # scores of an empty text are an error
    assert list(found) == ["suggestions"]
    assert found["suggestions"]["data"][2:] == ["company", "companies"]
    assert "text.0" in error(client, json={"inputs": [tensor("text", ["", "a"])]})


def test_digits_are_read_from_files_and_from_pixels(client: Client) -> None:
    native = client.post("/digits", content=png(IMAGE), headers={"Content-Type": "image/png"}).json()["results"][0]
    in_base64 = infer(client, "digits", tensor("image", [b64encode(png(IMAGE)).decode()]))
    in_pixels = infer(client, "digits", tensor("image", IMAGE[None].tolist(), "UINT8"))
    in_colours = infer(client, "digits", tensor("image", np.stack([IMAGE] * 3, -1)[None].tolist(), "UINT8"))
    assert in_base64 == in_pixels == in_colours
    assert (in_pixels["digit"]["data"], in_pixels["confidence"]["data"]) == ([native["digit"]], [native["confidence"]])
    assert in_pixels["probabilities"]["data"] == native["probabilities"]


def test_an_image_without_a_digit_is_rejected(client: Client) -> None:
    white = np.full((2, 28, 28), 255, np.uint8)
    assert infer(client, "digits", tensor("image", white.tolist(), "UINT8"))["digit"]["data"] == [-1, -1]


def test_a_caption_is_that_of_the_native_route(client: Client) -> None:
    content = png(SCENE)
    native = client.post("/captions", content=content, headers={"Content-Type": "image/png"}).json()["results"][0]
    fields = {"inputs": [tensor("image", [""])], "outputs": [{"name": "caption"}, {"name": "log_probability"}]}
    answer = client.post("/v2/models/captions/infer", **binary(fields, prefixed(content))).json()
    assert [output["data"] for output in answer["outputs"]] == [[native["caption"]], [native["log_probability"]]]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_is_read(client: Client, coding: str) -> None:
    options = binary({"inputs": [tensor("text", [TEXT])]}, prefixed(TEXT.encode()))
    content = gzip.compress(options["content"]) if coding == "gzip" else zlib.compress(options["content"])
    answer = client.post(
        "/v2/models/ptb/infer", content=content, headers={**options["headers"], "Content-Encoding": coding}
    )
    assert answer.status_code == 200


def test_a_body_in_another_coding_is_rejected(client: Client) -> None:
    answer = client.post("/v2/models/ptb/infer", content=b"{}", headers={"Content-Encoding": "br"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


INPUT: Final = tensor("text", ["a"])
FAULTS: Final[list[tuple[dict[str, Any], str]]] = [
    ({"inputs": []}, "inputs: "),
    ({}, "inputs: "),
    ({"inputs": [tensor("image", ["a"])]}, "inputs: expected text, found 'image'"),
    ({"inputs": [INPUT, INPUT]}, "inputs: expected one each of text, found 2"),
    ({"inputs": [tensor("text", [1], "INT64")]}, "text: datatype: expected BYTES, found 'INT64'"),
    ({"inputs": [tensor("text", [["a"]])]}, "text: shape: expected [-1], found [1, 1]"),
    ({"inputs": [INPUT | {"shape": [2]}]}, "text: data: expected 2 elements, as in its shape, found 1"),
    ({"inputs": [INPUT | {"shape": [-1]}]}, "inputs.0.shape.0: "),
    ({"inputs": [tensor("text", [])]}, "text: shape: expected a batch of 1 to 256, found 0"),
    ({"inputs": [INPUT | {"shape": [10**18]}]}, "text: shape: expected a batch of 1 to 256, found 1"),
    ({"inputs": [INPUT | {"shape": [10**4000]}]}, "inputs.0.shape.0: expected 9223372036854775807 or less"),
    ({"inputs": [INPUT | {"data": 1}]}, "text: data: expected 1 elements, as in its shape, found 0"),
    ({"inputs": [tensor("text", [1])]}, "text: data: expected strings"),
    ({"inputs": [tensor("text", ["\ud800"])]}, "text: expected a text in UTF-8"),
    ({"inputs": [INPUT | {"parameters": {"binary_data_size": 4}}]}, "inputs.0.parameters.binary_data_size: "),
    ({"inputs": [INPUT | {"parameters": {"shared_memory_region": "r"}}]}, "inputs.0.parameters.shared_memory_region: "),
    ({"inputs": [INPUT], "outputs": [{"name": "logits"}]}, "outputs: expected some of perplexity, "),
    (
        {"inputs": [INPUT], "outputs": [{"name": "tokens"}, {"name": "tokens"}]},
        "outputs: expected some of perplexity, ",
    ),
    (
        {"inputs": [INPUT], "outputs": [{"name": "tokens", "parameters": {"classification": 3}}]},
        "outputs.0.parameters.classification: ",
    ),
    ({"inputs": [INPUT], "parameters": {"sequence_id": 5}}, "parameters.sequence_id"),
    ({"inputs": [INPUT], "parameters": {"sequence_id": "five"}}, "parameters.sequence_id"),
    ({"inputs": [INPUT], "parameters": {"top_k": 0}}, "parameters.top_k: "),
    ({"inputs": [INPUT], "parameters": {"mode": "words"}}, "parameters.mode: "),
    ({"inputs": [INPUT], "parameters": {"timeout": -1}}, "parameters.timeout: "),
    (
        {"inputs": [INPUT], "parameters": {"timeout": 10**400}},
        "parameters.timeout: expected 9223372036854775807 or less",
    ),
]


@pytest.mark.parametrize(("fields", "message"), FAULTS)
def test_a_fault_is_named(client: Client, fields: dict[str, Any], message: str) -> None:
    assert error(client, content=json.dumps(fields)).startswith(message)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (tensor("image", ["!"]), "image: expected a file in base64"),
        (tensor("image", [b64encode(png(IMAGE)).decode(), b64encode(b"no image").decode()]), "image.1: expected PNG"),
        (tensor("image", ["", ""]), "image.0: expected an image, found nothing"),
        (tensor("image", [[[256]]], "UINT8"), "image: data: expected integers from 0 to 255"),
        (tensor("image", [[["a"]]], "UINT8"), "image: data: expected integers from 0 to 255"),
        (tensor("image", [[[0], [1, 2]]][:0], "UINT8") | {"shape": [1, 2, 2]}, "image: data: expected 4 values"),
        (tensor("image", [[]], "UINT8") | {"shape": [1, 0, 0]}, "image: shape: expected no empty dimension"),
        (tensor("image", [[]], "UINT8") | {"shape": [1, 2**60, 2**60]}, "image: data: expected 13292279957849"),
        (tensor("image", [[[[1, 2]]]], "UINT8"), "image: shape: expected [-1, -1, -1] or [-1, -1, -1, 3]"),
        (tensor("image", [""] * 33), "image: shape: expected a batch of 1 to 32, found 33"),
    ],
)
def test_a_fault_of_an_image_is_named(client: Client, image: dict[str, Any], message: str) -> None:
    assert error(client, "digits", json={"inputs": [image]}).startswith(message)


def test_fields_of_other_servers_are_ignored_and_null_is_as_if_not_sent(client: Client) -> None:
    parameters = {"priority": 3, "sequence_id": 0, "made_up": [1], "top_k": None}
    found = infer(client, "ptb", INPUT | {"made_up": 1}, parameters=parameters, outputs=None, id=None, made_up={})
    assert found["suggestions"]["shape"] == [1, 5]


def test_a_timeout_of_a_request_is_its_deadline(client: Client) -> None:
    answer = client.post("/v2/models/ptb/infer", json={"inputs": [INPUT], "parameters": {"timeout": 1}})
    assert answer.status_code == 504


def test_a_body_of_too_many_values_is_rejected(client: Client) -> None:
    content = b'{"inputs": [' + b"[" * 2**21
    assert client.post("/v2/models/ptb/infer", content=content).status_code == 413


LYING: Final = st.one_of(st.integers(-(2**70), 2**70).map(str), st.text("0123456789-+ _e", max_size=8))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_binary_body_is_a_server_error(client: Client, data: st.DataObject) -> None:
    """Sizes, shapes, truncations, headers that lie: an answer or an error of the client."""
    model, name = data.draw(st.sampled_from([("ptb", "text"), ("digits", "image")]))
    elements = data.draw(st.lists(st.binary(max_size=24), max_size=4))
    content = prefixed(*elements)
    content = data.draw(st.one_of(st.just(content), st.binary(max_size=64), st.just(content[:-1])))
    shape = data.draw(st.one_of(st.just([len(elements)]), st.lists(st.integers(-2, 2**65), max_size=5)))
    sizes = st.one_of(st.just(len(content)), st.integers(-2, 2**65), st.none(), st.floats(), st.text(max_size=2))
    fields = {
        "inputs": [
            {
                "name": name,
                "shape": shape,
                "datatype": data.draw(st.sampled_from(["BYTES", "UINT8", "FP32", ""])),
                "parameters": {"binary_data_size": data.draw(sizes)},
            }
        ]
        * data.draw(st.integers(1, 2))
    }
    head = json.dumps(fields).encode()
    length = data.draw(st.one_of(st.just(str(len(head))), LYING))
    whole = head + content
    headers = {LENGTH: length}
    if data.draw(st.booleans()):
        whole = data.draw(st.sampled_from([gzip.compress(whole), gzip.compress(whole)[:-3], whole]))
        headers["Content-Encoding"] = data.draw(st.sampled_from(["gzip", "deflate"]))
    answer = client.post(f"/v2/models/{model}/infer", content=whole, headers=headers)
    assert answer.status_code in (200, 400, 413), answer.text
    if answer.status_code != 200:
        assert isinstance(answer.json()["error"], str)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 8), max_size=5),
    extra=st.integers(-3, 3),
)
def test_sizes_add_up_exactly(sizes: list[int], extra: int) -> None:
    inputs: list[dict[str, Any]] = [{"parameters": {"binary_data_size": size}} for size in sizes]
    content = bytes(range(sum(sizes) + max(extra, 0)))[: max(sum(sizes) + extra, 0)]
    if len(content) != sum(sizes):
        with pytest.raises(InvalidField):
            place({"inputs": inputs}, memoryview(content))
    else:
        place({"inputs": inputs}, memoryview(content))
        assert b"".join(bytes(each["data"]) for each in inputs) == content
        assert [len(each["data"]) for each in inputs] == sizes


@pytest.mark.parametrize("value", [[], 7, {"inputs": 1}, {"inputs": [1, None, {"parameters": 1}]}])
def test_a_document_of_another_shape_is_left_to_validation(value: Any) -> None:
    place(value, memoryview(b""))


def test_binary_pixels_are_read(client: Client) -> None:
    fields = {"inputs": [tensor("image", IMAGE[None].tolist(), "UINT8")], "outputs": [{"name": "digit"}]}
    answer = client.post("/v2/models/digits/infer", **binary(fields, IMAGE.tobytes()))
    assert answer.json()["outputs"] == [{"name": "digit", "datatype": "INT64", "shape": [1], "data": [1]}]
