"""Tensors of the Open Inference Protocol: JSON, and the binary tensor data extension.

With `Inference-Header-Content-Length: J` a body is J bytes of JSON, then the binary tensors in order: little-endian,
row-major; a BYTES element is four bytes of length and its content. The sizes must add up to that of the body.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from fastapi import Request
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope

from app.api.http import bodies, uploads
from app.api.http.bodies import JsonBody
from app.api.oip.schemas import InferAnswer, InferRequest, InputTensor, OutputTensor
from app.errors import InvalidField, TooLarge

HEADER: Final = "Inference-Header-Content-Length"
MAX_VALUES: Final = 2**20  # commas of the JSON part: more would take long to parse
DTYPES: Final = {"INT64": "<i8", "FP64": "<f8"}

Values: TypeAlias = npt.NDArray[Any] | Sequence[str]


class Spec(NamedTuple):
    """The type of a tensor; -1 in its shape is a variable dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LooseJson(JsonBody):
    """A JSON object, whatever its media type; an empty body is an empty object."""

    def openapi(self) -> dict[str, Any]:
        """Return that the body may be absent."""
        return {"requestBody": {"required": False}}

    def require_type(self, content_type: bytes | None) -> None:
        """Accept any: clients of the protocol send none."""

    async def read(self, scope: Scope, receive: Receive) -> Any:
        """Return the JSON document."""
        content = await bodies.content(scope, receive, bulk=self.bulk)
        return await bodies.document(content, scope, receive, bulk=self.bulk) if content else {}


@dataclass(frozen=True)
class TensorBody(LooseJson):
    """A request with tensors."""

    bulk: bool = False

    def openapi(self) -> dict[str, Any]:
        """Return that the body is required."""
        return {"requestBody": {"required": True}}

    async def read(self, scope: Scope, receive: Receive) -> Any:
        """Return the JSON document; binary tensors become the `data` of their inputs, as memoryviews.

        Raise TooLarge, Malformed or InvalidField.
        """
        content = await bodies.content(scope, receive, bulk=self.bulk)
        length = Request(scope).headers.get(HEADER.lower())
        if length is None:
            size = len(content)
        elif length.isascii() and length.isdigit() and int(length[:20]) <= len(content):
            size = int(length)
        else:
            raise InvalidField(HEADER, f"expected 0 to {len(content)}, the bytes of the body, found {length[:40]!r}")
        head = content[:size]
        if head.count(b",") + head.count(b"[") > MAX_VALUES:
            raise TooLarge(
                f"body: expected at most {MAX_VALUES} values in JSON, found more; binary tensors may have more"
            )
        found = await bodies.document(head, scope, receive, bulk=self.bulk, max_values=MAX_VALUES)
        place(found, memoryview(content)[size:])
        return found


def place(document: Any, binary: memoryview) -> None:
    """Cut the binary part into the tensors of a request. Raise InvalidField unless their sizes add up to its size."""
    inputs = document.get("inputs") if isinstance(document, dict) else None
    start = 0
    for index, tensor in enumerate(inputs if isinstance(inputs, list) else ()):
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        field = f"inputs.{index}.parameters.binary_data_size"
        if type(size) is not int or not 0 <= size <= len(binary) - start:
            raise InvalidField(field, f"expected 0 to {len(binary) - start}, the bytes that are left, found {size!r}")
        if tensor.get("data") is not None:
            raise InvalidField(field, "expected data in JSON or in binary, found both")
        tensor["data"] = binary[start : start + size]
        start += size
    if start != len(binary):
        raise InvalidField("body", f"expected {start} bytes after the JSON, as its tensors have, found {len(binary)}")


def require(tensor: InputTensor, specs: Sequence[Spec], max_batch: int) -> Spec:
    """Return the one of `specs` that the tensor has the type and shape of. Raise InvalidField if it has none."""
    fitting = [spec for spec in specs if spec.datatype == tensor.datatype]
    if not fitting:
        expected = " or ".join(dict.fromkeys(spec.datatype for spec in specs))
        raise InvalidField(tensor.name, f"datatype: expected {expected}, found {tensor.datatype[:40]!r}")
    for spec in fitting:
        if len(spec.shape) == len(tensor.shape) and all(
            size in (-1, found) for size, found in zip(spec.shape, tensor.shape, strict=True)
        ):
            break
    else:
        expected = " or ".join(str(list(spec.shape)) for spec in fitting)
        raise InvalidField(tensor.name, f"shape: expected {expected}, found {tensor.shape}")
    if 0 in tensor.shape[1:]:
        raise InvalidField(tensor.name, f"shape: expected no empty dimension, found {tensor.shape}")
    if not 1 <= tensor.shape[0] <= max_batch:
        raise InvalidField(tensor.name, f"shape: expected a batch of 1 to {max_batch}, found {tensor.shape[0]}")
    return spec


def element_name(tensor: InputTensor, index: int) -> str:
    """Return the name of an element in errors: `text`, or `text.3` among several."""
    return f"{tensor.name}.{index}" if tensor.shape[0] > 1 else tensor.name


def texts(tensor: InputTensor) -> list[str]:
    """Return the texts of a BYTES tensor (N,). Raise InvalidField for one that is not Unicode in UTF-8."""
    found = []
    for index, element in enumerate(_elements(tensor)):
        try:
            text = element if isinstance(element, str) else element.decode()
            text.encode()  # JSON can escape an unpaired surrogate
        except UnicodeError as error:
            raise InvalidField(element_name(tensor, index), f"expected a text in UTF-8: {error}") from error
        found.append(text)
    return found


async def contents(tensor: InputTensor) -> list[bytes]:
    """Return the files of a BYTES tensor (N,), in base64 in JSON. Raise InvalidField for another coding."""
    found = []
    for index, element in enumerate(_elements(tensor)):
        try:
            found.append(await uploads.from_base64(element) if isinstance(element, str) else element)
        except ValueError as error:
            raise InvalidField(element_name(tensor, index), f"expected a file in base64: {error}") from error
    return found


def pixels(tensor: InputTensor) -> npt.NDArray[np.uint8]:
    """Return a UINT8 tensor (N, ...). Raise InvalidField unless there are as many bytes as its shape has."""
    data, size = tensor.data, prod(tensor.shape)
    if isinstance(data, list):
        flat = _flat(data, len(tensor.shape))
        try:
            data = bytes(flat)
        except (TypeError, ValueError) as error:
            raise InvalidField(tensor.name, "data: expected integers from 0 to 255, found other values") from error
    if not isinstance(data, bytes | memoryview):
        raise InvalidField(tensor.name, "data: expected an array, found none")
    if len(data) != size:
        raise InvalidField(tensor.name, f"data: expected {size} values of shape {tensor.shape}, found {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(tensor.shape)


def _elements(tensor: InputTensor) -> Sequence[str | bytes]:
    """Return the elements of a BYTES tensor (N,): strings from JSON, bytes from a binary one."""
    (expected,) = tensor.shape
    found: Sequence[str | bytes]
    if isinstance(tensor.data, memoryview):
        found = _length_prefixed(tensor)
    else:
        found = _flat(tensor.data, 1) if isinstance(tensor.data, list) else []
        if not all(isinstance(element, str) for element in found):
            raise InvalidField(tensor.name, "data: expected strings, found other values")
    if len(found) != expected:
        raise InvalidField(tensor.name, f"data: expected {expected} elements, as in its shape, found {len(found)}")
    return found


def _length_prefixed(tensor: InputTensor) -> list[bytes]:
    data, (expected,) = tensor.data, tensor.shape
    found: list[bytes] = []
    start = 0
    while start < len(data) and len(found) < expected:
        end = start + 4 + (struct.unpack_from("<I", data, start)[0] if start + 4 <= len(data) else 0)
        if end > len(data):
            raise InvalidField(f"{tensor.name}", f"data: expected element {len(found)} whole, found its start")
        found.append(bytes(data[start + 4 : end]))
        start = end
    if start != len(data):
        raise InvalidField(tensor.name, f"data: expected {expected} elements, as in its shape, found more")
    return found


def _flat(data: list[Any], depth: int) -> list[Any]:
    """Flatten up to `depth` levels of nested arrays."""
    for _ in range(depth - 1):
        if data and all(isinstance(row, list) for row in data):
            data = list(chain.from_iterable(data))
    return data


def response(request: InferRequest, model: str, version: str, outputs: Sequence[tuple[Spec, Values]]) -> Response:
    """Return the answer with the outputs, each in JSON or in binary as requested."""
    requested = {output.name: output.parameters.binary_data for output in request.outputs}
    tensors: list[OutputTensor] = []
    tail: list[bytes] = []
    for spec, values in outputs:
        shape = list(np.shape(values))
        tensor: OutputTensor = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
        binary = requested.get(spec.name)
        if request.parameters.binary_data_output if binary is None else binary:
            content = _binary(spec, values)
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        else:
            tensor["data"] = np.ravel(np.asarray(values)).tolist()
        tensors.append(tensor)
    answer: InferAnswer = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.id is not None:
        answer["id"] = request.id
    head = to_json(answer, inf_nan_mode="null")
    if not tail:
        return Response(head, media_type="application/json")
    return Response(b"".join([head, *tail]), headers={HEADER: str(len(head))}, media_type="application/octet-stream")


def _binary(spec: Spec, values: Values) -> bytes:
    if spec.datatype in DTYPES:
        return np.asarray(values, DTYPES[spec.datatype]).tobytes()
    encoded = [text.encode() for text in np.ravel(np.asarray(values)).tolist()]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
