"""The text form of ONNX graphs, in float32 and in batch-invariant int8, with a scale a row.

int8: activations are quantised per row, round(x / s) + 128 as unsigned 8 bit with s = max|x| / 127; weights per column,
signed 8 bit; the product's sums are exact, as `MatMulInteger`'s. Every other operation works within a row. A row's
result is therefore the same bit for bit in any batch and wherever a sequence is cut.

The float32 graphs hold no weights: as ONNX external data they point into the bundle's weights.safetensors.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import TensorProto, numpy_helper

from app.runtime.onnx_session import Precision
from app.runtime.recurrent_engine import WEIGHTS

OPSET = '<ir_version: 10, opset_import: ["": 21, "seqserve": 1, "com.microsoft": 1]>'
FUNCTION = '<domain: "seqserve", opset_import: ["": 21, "seqserve": 1, "com.microsoft": 1]>'

Array: TypeAlias = npt.NDArray[np.generic]
Extent: TypeAlias = tuple[int, int]  # offset and length in weights.safetensors, in bytes

LINEAR: dict[Precision, dict[str, str]] = {
    # y = x W^T for x (..., in), with W (out, in) kept as float16
    "fp32": {"Linear": "(x, weight) => (y) { y = com.microsoft.FusedMatMul <transB = 1> (x, weight) }"},
    # the same with W^T (in, out) as int8 and a scale a column; of a row of zeros the peak, 0, makes the product 0
    "int8": {
        "Linear": """(x, weight, column_scale) => (y) {
            quantised, peak = seqserve.Quantise (x)
            y = seqserve.Product (quantised, peak, weight, column_scale)
        }""",
        "Quantise": """(x) => (quantised, peak) {
            across = Constant <value_ints = [-1]> ()
            step = Constant <value_float = 0.007874016> ()
            zero = Constant <value = uint8 {128}> ()
            magnitude = Abs (x)
            peak = ReduceMax (magnitude, across)
            unit = Div (x, peak)
            quantised = QuantizeLinear (unit, step, zero)
        }""",
        "Product": """(quantised, peak, weight, column_scale) => (y) {
            step = Constant <value_float = 0.007874016> ()
            zero = Constant <value = uint8 {128}> ()
            product = com.microsoft.MatMulIntegerToFloat (quantised, weight, step, column_scale, zero)
            y = Mul (product, peak)
        }""",
    },
}


@dataclass
class Graph:
    """A graph under construction: its text and constants."""

    precision: Precision
    weights: Mapping[str, Array]  # the module's, (out, in)
    lines: list[str] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    kept_outside: set[str] = field(default_factory=set)  # names of tensors of weights.safetensors
    functions: dict[str, str] = field(default_factory=dict)  # of the domain seqserve, name -> signature and body

    def linear(self, x: str, weight: str) -> str:
        """Return the call that multiplies the rows of `x` with the transpose of the named weight."""
        return f"seqserve.Linear ({x}, {', '.join(self._factor(weight))})"

    def split_linear(
        self, x: str, weight: str, parts: Sequence[str], *, bias: Array | None = None, peak: float | None = None
    ) -> None:
        """Add the lines that compute the product of `linear`, and `bias`, in equal `parts`: int8 rows quantised once.

        `peak`: of rows whose largest numbers are known, such as normed ones; int8 rows then have one scale, peak / 127,
        and what exceeds it is clipped.
        """
        factors, name = self._factor(weight, len(parts)), identifier(weight)
        biases: list[str] = []
        if bias is not None:
            biases = [
                self.constant(f"{part}_bias", own) for part, own in zip(parts, np.split(bias, len(parts)), strict=True)
            ]
        fused = self.precision == "int8" and peak is not None
        products = [f"{part}_product" for part in parts] if biases and not fused else parts
        if self.precision == "fp32":
            whole = products[0] if len(parts) == 1 else f"{name}_whole"
            self.lines.append(f"{whole} = seqserve.Linear ({x}, {factors[0]})")
            if len(parts) > 1:
                self.lines.append(f"{', '.join(products)} = Split <axis = -1, num_outputs = {len(parts)}> ({whole})")
        elif peak is None:
            self.lines.append(f"{name}_rows, {name}_peak = seqserve.Quantise ({x})")
            for product, columns, scale in zip(products, factors[::2], factors[1::2], strict=True):
                self.lines.append(f"{product} = seqserve.Product ({name}_rows, {name}_peak, {columns}, {scale})")
        else:
            step = self.constant(f"{name}_step", np.array(peak / 127, np.float32))
            zero = self.constant("zero", np.array(128, np.uint8))
            self.lines.append(f"{name}_rows = QuantizeLinear ({x}, {step}, {zero})")
            for part, columns, scale, own in zip_longest(parts, factors[::2], factors[1::2], biases, fillvalue=""):
                product = f"{name}_rows, {columns}, {step}, {scale}, {zero}{own and f', , {own}'}"
                self.lines.append(f"{part} = com.microsoft.MatMulIntegerToFloat ({product})")
        if products is not parts:
            self.lines += [f"{part} = Add ({part}_product, {own})" for part, own in zip(parts, biases, strict=True)]

    def _factor(self, weight: str, parts: int = 1) -> list[str]:
        """Return the names of a weight as the products take it: in float32, or int8 `parts`, each with its scales."""
        name = identifier(weight)
        self.functions |= LINEAR[self.precision]
        if self.precision == "fp32":
            if weight not in self.kept_outside:
                self.lines.append(f"{name} = Cast <to = 1> ({self.outside(weight)})")
            return [name]
        names = [name] if parts == 1 else [f"{name}_{part}" for part in range(parts)]
        if names[0] not in self.constants:
            quantised, scale = quantise(self.weights[weight].astype(np.float32))
            for each, columns, scales in zip(names, np.split(quantised, parts, 1), np.split(scale, parts), strict=True):
                self.constants |= {each: columns, f"{each}_scale": scales}
        return [named for each in names for named in (each, f"{each}_scale")]

    def outside(self, weight: str) -> str:
        """Return the graph's name of a tensor that stays in weights.safetensors."""
        self.kept_outside.add(weight)
        return f"{identifier(weight)}_half"

    def constant(self, name: str, value: Array) -> str:
        """Add an embedded tensor to the graph; return its name."""
        self.constants[name] = value
        return name

    def model(self, signature: str, extents: Mapping[str, Extent]) -> bytes:
        """Return the finished model, serialized; `extents` are those of the tensors of weights.safetensors."""
        model = onnx.parser.parse_model(f"{OPSET} {signature} {{\n" + "\n".join(self.lines) + "\n}")
        for name, function in self.functions.items():
            model.functions.append(onnx.parser.parse_function(f"{FUNCTION} {name} {function}"))
        for name, value in self.constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        for weight in sorted(self.kept_outside):
            model.graph.initializer.append(external(weight, self.weights[weight], extents[weight]))
        return bytes(model.SerializeToString())


def quantise(weight: Array) -> tuple[Array, Array]:
    """(out, in) float -> its transpose (in, out) as int8, and the scale of each of its columns (out,)."""
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-30) / 127
    return np.rint(weight / scale[:, None]).astype(np.int8).T, scale.astype(np.float32)


def external(weight: str, value: Array, extent: Extent) -> onnx.TensorProto:
    """Return an initializer whose data is a float16 tensor of weights.safetensors."""
    tensor = TensorProto(
        name=f"{identifier(weight)}_half",
        data_type=TensorProto.FLOAT16,
        dims=value.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, setting in (("location", WEIGHTS), ("offset", extent[0]), ("length", extent[1])):
        tensor.external_data.add(key=key, value=str(setting))
    return tensor


def layout(stored: bytes) -> dict[str, Extent]:
    """Return each tensor's extent in a safetensors file: 8 bytes of header length, the header as JSON, the data."""
    (header_length,) = struct.unpack_from("<Q", stored)
    header = json.loads(stored[8 : 8 + header_length])
    header.pop("__metadata__", None)
    start = 8 + header_length
    return {
        name: (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def identifier(name: str) -> str:
    """Return a tensor's name as an identifier of ONNX's text form, which allows no dots."""
    return name.replace(".", "_")
