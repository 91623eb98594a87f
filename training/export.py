"""Torch modules -> ONNX graphs, in float32 and in int8 with a scale a row.

int8, so that no answer depends on what shares its batch: activations are quantised row by row, round(x / s) + 128 as
unsigned 8 bit with s = max|x| / 127; weights column by column, signed 8 bit; `MatMulInteger` sums exactly. Every other
operation works within a row, so a row's result is the same bit for bit in any batch and wherever a sequence is cut.

The float32 graphs hold no weights: as ONNX external data they point into the bundle's weights.safetensors.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import TensorProto, numpy_helper
from safetensors.numpy import save

from app.models.language_model import LanguageModel
from app.runtime.engine import WEIGHTS, Precision

OPSET = '<ir_version: 10, opset_import: ["": 21, "seqserve": 1]>'

Array: TypeAlias = npt.NDArray[np.generic]

LINEAR: dict[Precision, str] = {
    # y = x W^T with W (out, in) kept as float16
    "fp32": """
        <domain: "seqserve", opset_import: ["": 21]>
        Linear (x, weight) => (y) { y = Gemm <transB = 1> (x, weight) }""",
    # the same with W^T (in, out) as int8 and a scale a column
    "int8": """
        <domain: "seqserve", opset_import: ["": 21]>
        Linear (x, weight, column_scale) => (y) {
            across = Constant <value_ints = [-1]> ()
            most = Constant <value_float = 127.0> ()
            tiny = Constant <value_float = 1e-30> ()
            zero = Constant <value = uint8 {128}> ()
            magnitude = Abs (x)
            largest = ReduceMax <keepdims = 0> (magnitude, across)
            peak = Max (largest, tiny)
            row_scale = Div (peak, most)
            rows = Shape (row_scale)
            zeros = ConstantOfShape <value = uint8[1] {128}> (rows)
            quantised = QuantizeLinear <axis = 0> (x, row_scale, zeros)
            product = MatMulInteger (quantised, weight, zero)
            real = Cast <to = 1> (product)
            row_scales = Unsqueeze (row_scale, across)
            scaled = Mul (real, row_scales)
            y = Mul (scaled, column_scale)
        }""",
}


@dataclass
class _Graph:
    """The text of a graph under construction and the constants it names."""

    precision: Precision
    weights: Mapping[str, Array]  # the module's, (out, in)
    lines: list[str] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    kept_outside: set[str] = field(default_factory=set)  # names of tensors of weights.safetensors

    def linear(self, x: str, weight: str) -> str:
        """The call that multiplies the rows of `x` with the transpose of the named weight."""
        name = _identifier(weight)
        if self.precision == "fp32":
            if weight not in self.kept_outside:
                self.lines.append(f"{name} = Cast <to = 1> ({self.outside(weight)})")
            return f"seqserve.Linear ({x}, {name})"
        if name not in self.constants:
            quantised, scale = quantise(self.weights[weight].astype(np.float32))
            self.constants |= {name: quantised, f"{name}_scale": scale}
        return f"seqserve.Linear ({x}, {name}, {name}_scale)"

    def outside(self, weight: str) -> str:
        """The graph's name of a tensor that stays in weights.safetensors."""
        self.kept_outside.add(weight)
        return f"{_identifier(weight)}_half"

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def model(self, signature: str, layout: Mapping[str, tuple[int, int]]) -> bytes:
        """The finished model; `layout` tells where in weights.safetensors a tensor lies."""
        text = f"{OPSET} {signature} {{\n" + "\n".join(self.lines) + "\n}"
        model = onnx.parser.parse_model(text)
        model.functions.append(onnx.parser.parse_function(LINEAR[self.precision]))
        for name, value in self.constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        for weight in sorted(self.kept_outside):
            model.graph.initializer.append(_external(weight, self.weights[weight], layout[weight]))
        return bytes(model.SerializeToString())


def export_language_model(model: LanguageModel) -> dict[str, bytes]:
    """Weights (float16) and graphs of a language model, file name -> content; see app.runtime.engine for the graphs."""
    weights = {name: tensor.detach().half().numpy() for name, tensor in model.state_dict().items()}
    if model.output.weight is model.embedding.weight:
        del weights["output.weight"]
    stored = save(weights)
    layout = _layout(stored)
    files = {WEIGHTS: stored}
    for precision in LINEAR:
        files[f"recurrent.{precision}.onnx"] = _recurrent(model, weights, layout, precision)
        files[f"softmax.{precision}.onnx"] = _softmax(weights, layout, precision)
    return files


def quantise(weight: Array) -> tuple[Array, Array]:
    """(out, in) float -> its transpose (in, out) as int8, and the scale of each of its columns (out,)."""
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-30) / 127
    return np.rint(weight / scale[:, None]).astype(np.int8).T, scale.astype(np.float32)


def _recurrent(
    model: LanguageModel, weights: Mapping[str, Array], layout: Mapping[str, tuple[int, int]], precision: Precision
) -> bytes:
    """The graph of tokens (T, B), state (B, S) -> hidden (T, B, H), state_after (B, S).

    A layer's input products are made for all steps at once; its recurrence is a Scan over the steps. The state is
    c and h of each layer in turn, so that its last numbers are the top layer's output.
    """
    graph = _Graph(precision, weights)
    graph.constant("one", np.array([1]))
    embedding = graph.outside("embedding.weight")
    graph.lines += ["shape = Shape (tokens)", f"rows = Gather ({embedding}, tokens)", "x0 = Cast <to = 1> (rows)"]
    position, size_in, after = 0, model.embedding.embedding_dim, []
    for index, layer in enumerate(model.recurrent.layers):
        size: int = layer.hidden_size  # type: ignore[assignment]
        for part in ("c", "h"):
            start, end = (graph.constant(f"at{at}", np.array([at])) for at in (position, position + size))
            graph.lines.append(f"{part}{index} = Slice (state, {start}, {end}, one)")
            position += size
        after += [f"c{index}_after", f"h{index}_after"]
        graph.lines.append(_lstm_layer(graph, f"recurrent.layers.{index}", index, size_in, size))
        size_in = size
    graph.lines += [f"hidden = Identity (x{len(after) // 2})", f"state_after = Concat <axis = 1> ({', '.join(after)})"]
    signature = (
        f"recurrent (int64[T,B] tokens, float[B,{position}] state)"
        f" => (float[T,B,{size_in}] hidden, float[B,{position}] state_after)"
    )
    return graph.model(signature, layout)


def _lstm_layer(graph: _Graph, layer: str, index: int, size_in: int, size: int) -> str:
    """The equations of app.models.recurrent.LSTMLayer: x{index} (T, B, I) -> x{index + 1} (T, B, H)."""
    n = index
    graph.constant(f"flat{n}", np.array([-1, size_in]))
    graph.constant(f"gates{n}", np.array([4 * size]))
    bias = graph.constant(f"bias{n}", graph.weights[f"{layer}.bias"].astype(np.float32))
    input_product = graph.linear(f"x{n}_rows", f"{layer}.weight_ih")
    recurrent_product = graph.linear("h", f"{layer}.weight_hh")
    return f"""
        x{n}_rows = Reshape (x{n}, flat{n})
        input_product{n} = {input_product}
        biased{n} = Add (input_product{n}, {bias})
        gates_shape{n} = Concat <axis = 0> (shape, gates{n})
        input_gates{n} = Reshape (biased{n}, gates_shape{n})
        c{n}_after, h{n}_after, x{n + 1} = Scan <num_scan_inputs = 1, body = step{n}
            (float[B,{size}] c, float[B,{size}] h, float[B,{4 * size}] input_gates)
            => (float[B,{size}] c_next, float[B,{size}] h_next, float[B,{size}] output) {{
                recurrent_product = {recurrent_product}
                gates = Add (recurrent_product, input_gates)
                i, f, g, o = Split <axis = 1, num_outputs = 4> (gates)
                i_open = Sigmoid (i)
                f_open = Sigmoid (f)
                o_open = Sigmoid (o)
                candidate = Tanh (g)
                kept = Mul (f_open, c)
                added = Mul (i_open, candidate)
                c_next = Add (kept, added)
                c_squashed = Tanh (c_next)
                h_next = Mul (o_open, c_squashed)
                output = Identity (h_next)
            }}> (c{n}, h{n}, input_gates{n})"""


def _softmax(weights: Mapping[str, Array], layout: Mapping[str, tuple[int, int]], precision: Precision) -> bytes:
    """The graph of hidden (N, H) -> log_probabilities (N, V)."""
    graph = _Graph(precision, weights)
    weight = "output.weight" if "output.weight" in weights else "embedding.weight"
    bias = graph.constant("bias", weights["output.bias"].astype(np.float32))
    product = graph.linear("hidden", weight)
    graph.lines += [
        f"product = {product}",
        f"logits = Add (product, {bias})",
        "log_probabilities = LogSoftmax <axis = 1> (logits)",
    ]
    words, size = weights[weight].shape
    return graph.model(f"softmax (float[N,{size}] hidden) => (float[N,{words}] log_probabilities)", layout)


def _external(weight: str, value: Array, place: tuple[int, int]) -> onnx.TensorProto:
    """An initializer whose bytes are those of a float16 tensor of weights.safetensors."""
    tensor = TensorProto(
        name=f"{_identifier(weight)}_half",
        data_type=TensorProto.FLOAT16,
        dims=value.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, setting in (("location", WEIGHTS), ("offset", place[0]), ("length", place[1])):
        tensor.external_data.add(key=key, value=str(setting))
    return tensor


def _layout(stored: bytes) -> dict[str, tuple[int, int]]:
    """Each tensor's (offset, length) in a safetensors file: 8 bytes of header length, the header as JSON, the data."""
    (header_length,) = struct.unpack_from("<Q", stored)
    header = json.loads(stored[8 : 8 + header_length])
    header.pop("__metadata__", None)
    start = 8 + header_length
    return {
        name: (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _identifier(name: str) -> str:
    """A tensor's name as a name of ONNX's text form, which knows no dots."""
    return name.replace(".", "_")
