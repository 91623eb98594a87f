"""Digit readers -> ONNX graphs: pixels (B, 28, 28) uint8 -> logits (B, outputs).

int8: weights signed 8 bit with a scale a column, pixels as they are (unsigned, a step is 1/255), hidden states unsigned
8 bit with zero point 128 and a step of 1/127. A hidden state lies between -1 and 1, so the step is fixed: no answer
depends on the rest of its batch, and nothing is measured at run time. The recurrence is a Scan of one step for
both directions. fp32: ONNX's own operators.
"""

from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save
from torch import nn

from app.models.digits import SIDE, ReNet, RowReader
from app.models.recurrent import GATES, Cell, Recurrent
from app.runtime.onnx_session import Precision
from app.runtime.recurrent_engine import WEIGHTS
from training.onnx.cells import hidden_bias, operator, state_parts, step
from training.onnx.graph import Array, Graph, identifier, quantise

HIDDEN = ("hidden_step", "hidden_zero")  # names of the constants of the hidden states' quantisation
PIXEL = ("pixel_step", "pixel_zero")
ONE_LINE = -1  # in place of a number of steps: one line of any length


def export_digits(model: RowReader | ReNet) -> dict[str, bytes]:
    """Weights (float32) and graphs of a reader, file name -> content."""
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    return {WEIGHTS: save(weights)} | {f"reader.{p}.onnx": _reader(model, weights, p) for p in precisions}


def pixel_graph(precision: Precision, weights: dict[str, Array]) -> Graph:
    """Return a graph with the constants of quantisation."""
    graph = Graph(precision, weights)
    for name, size, zero in (("hidden", 1 / 127, 128), ("pixel", 1 / 255, 0)):
        graph.constant(f"{name}_step", np.array(size, np.float32))
        graph.constant(f"{name}_zero", np.array(zero, np.uint8))
    return graph


def _reader(model: RowReader | ReNet, weights: dict[str, Array], precision: Precision) -> bytes:
    graph = pixel_graph(precision, weights)
    features = _rows(graph, model) if isinstance(model, RowReader) else _renet(graph, model)
    graph.constant("output_weight", weights["output.weight"])
    graph.constant("output_bias", weights["output.bias"])
    graph.lines.append(f"logits = Gemm <transB = 1> ({features}, output_weight, output_bias)")
    signature = f"reader (uint8[B,{SIDE},{SIDE}] pixels) => (float[B,{len(weights['output.bias'])}] logits)"
    return graph.model(signature, {})


def _rows(graph: Graph, model: RowReader) -> str:
    """Write the layer of a RowReader; return the name of the last step's output (B, 2H)."""
    graph.lines.append("rows = Transpose <perm = [1, 0, 2]> (pixels)")
    hidden = sweep(graph, "recurrent", model.recurrent, "rows", SIDE, pixels=True)
    graph.constant("last", np.array(SIDE - 1))
    graph.lines.append(f"features = Gather <axis = 0> ({hidden}, last)")
    return "features"


def _renet(graph: Graph, model: ReNet) -> str:
    """Write the layers of a ReNet; return the name of the last layer's flattened output (B, H * W * 2H)."""
    side, size = SIDE, 1
    graph.constant("plane_shape", np.array([SIDE, SIDE, -1, 1]))
    graph.lines += ["turned = Transpose <perm = [1, 2, 0]> (pixels)", "plane = Reshape (turned, plane_shape)"]
    plane = "plane"
    for n, (patch, hidden) in enumerate(model.layers):
        side, cut = side // patch, (side // patch, patch)
        graph.constant(f"cut{n}", np.array([*cut, *cut, -1, size]))
        graph.constant(f"across{n}", np.array([side, -1, size * patch**2]))
        graph.constant(f"plane{n}", np.array([side, side, -1, 2 * hidden]))
        graph.constant(f"down{n}", np.array([side, -1, 2 * hidden]))
        graph.lines += [
            f"cut_plane{n} = Reshape ({plane}, cut{n})",
            f"patches{n} = Transpose <perm = [2, 0, 4, 1, 3, 5]> (cut_plane{n})",
            f"lines{n} = Reshape (patches{n}, across{n})",
        ]
        read = sweep(graph, f"across.{n}", model.across[n], f"lines{n}", side, pixels=n == 0)
        graph.lines += [
            f"read_plane{n} = Reshape ({read}, plane{n})",
            f"columns{n} = Transpose <perm = [1, 0, 2, 3]> (read_plane{n})",
            f"column_lines{n} = Reshape (columns{n}, down{n})",
        ]
        read = sweep(graph, f"down.{n}", model.down[n], f"column_lines{n}", side)
        plane, size = f"plane_after{n}", 2 * hidden
        graph.lines.append(f"{plane} = Reshape ({read}, plane{n})")
    graph.constant("features_shape", np.array([-1, side * side * size]))
    graph.lines += [
        f"places = Transpose <perm = [2, 0, 1, 3]> ({plane})",
        "features = Reshape (places, features_shape)",
    ]
    return "features"


def sweep(graph: Graph, name: str, module: nn.Module, x: str, steps: int, *, pixels: bool = False) -> str:
    """Write the bidirectional layer `name` over `x`, (T, N, I) -> (T, N, 2H); return the output's name.

    `steps` is T, or ONE_LINE where N is 1.
    """
    assert isinstance(module, Recurrent)
    layer = Sweep(
        module.cell, {"f": f"{name}.layers.0", "b": f"{name}.reversed_layers.0"}, name.replace(".", ""), steps
    )
    (size,) = module.hidden_sizes
    return (_operator if graph.precision == "fp32" else _scan)(graph, layer, x, size, pixels=pixels)


@dataclass(frozen=True)
class Sweep:
    """A bidirectional layer."""

    cell: Cell
    layers: dict[str, str]  # prefixes of the directions' weights, by `f` and `b`
    prefix: str  # of all its names
    steps: int

    def shape(self, size: int) -> Array:
        """The shape of a sequence of vectors of that size, of which one dimension is inferred."""
        return np.array([-1, 1, size] if self.steps == ONE_LINE else [self.steps, -1, size])


def _operator(graph: Graph, sweep: Sweep, x: str, size: int, *, pixels: bool) -> str:
    """Write the layer as ONNX's operator, whose output is (T, 2, N, H)."""
    p, source = sweep.prefix, x
    graph.constant(f"{p}_shape", sweep.shape(2 * size))
    if pixels:
        source = f"{p}_grey"
        graph.lines += [f"{p}_real = Cast <to = 1> ({x})", f"{source} = Mul ({p}_real, pixel_step)"]
    graph.lines += [
        f"{p}_y = {operator(graph, sweep.cell, list(sweep.layers.values()), source)}",
        f"{p}_turned = Transpose <perm = [0, 2, 1, 3]> ({p}_y)",
        f"{p}_out = Reshape ({p}_turned, {p}_shape)",
    ]
    return f"{p}_out"


def _scan(graph: Graph, sweep: Sweep, x: str, size: int, *, pixels: bool) -> str:
    """Write the layer as one input product over all steps and one Scan over both directions."""
    p, parts, width = sweep.prefix, state_parts(sweep.cell), GATES[sweep.cell] * size
    input_size = graph.weights[f"{sweep.layers['f']}.weight_ih"].shape[1]
    graph.constant(f"{p}_flat", np.array([-1, input_size]))
    shape = graph.constant(f"{p}_shape", sweep.shape(width))
    graph.lines.append(f"{p}_rows = Reshape ({x}, {p}_flat)")
    rows, grid = f"{p}_rows", PIXEL
    if not pixels:
        rows, grid = f"{p}_quantised", HIDDEN
        graph.lines.append(f"{rows} = QuantizeLinear ({p}_rows, {HIDDEN[0]}, {HIDDEN[1]})")
    for way, layer in sweep.layers.items():
        read = _product(graph, f"{layer}.weight_ih", graph.weights[f"{layer}.bias"], rows, grid)
        graph.lines += [f"{p}_{way}_products = {read}", f"{p}_{way}_read = Reshape ({p}_{way}_products, {shape})"]
    states = [f"{way}_{part}" for way in sweep.layers for part in parts]
    inputs = ", ".join(
        [f"float[N,{size}] {state}" for state in states] + [f"float[N,{width}] {w}_read" for w in sweep.layers]
    )
    outputs = ", ".join(
        f"float[N,{size}] {name}" for name in [*(f"{state}_next" for state in states), "f_out", "b_out"]
    )
    graph.constant(f"{p}_size", np.array([size]))
    graph.lines.append(f"""
        {p}_count = Shape <start = 1, end = 2> ({x})
        {p}_state_shape = Concat <axis = 0> ({p}_count, {p}_size)
        {p}_zeros = ConstantOfShape <value = float[1] {{0.0}}> ({p}_state_shape)
        {", ".join(f"{p}_{state}_last" for state in states)}, {p}_forward, {p}_backward = Scan
            <num_scan_inputs = 2, scan_input_directions = [0, 1], scan_output_directions = [0, 1],
             body = {p}_step ({inputs}) => ({outputs}) {{
            {chr(10).join(_advance(graph, sweep.cell, way, layer) for way, layer in sweep.layers.items())}
            }}> ({", ".join([f"{p}_zeros"] * len(states))}, {p}_f_read, {p}_b_read)
        {p}_out = Concat <axis = 2> ({p}_forward, {p}_backward)""")
    return f"{p}_out"


def _advance(graph: Graph, cell: Cell, way: str, layer: str) -> str:
    """Lines of one step in one direction."""
    inner = hidden_bias(graph, cell, layer)
    if inner is None:
        inner = np.zeros(len(graph.weights[f"{layer}.bias"]), np.float32)
    hidden_gates = _product(graph, f"{layer}.weight_hh", inner, f"{way}_q", HIDDEN)
    before = [f"{way}_{part}" for part in state_parts(cell)]
    after = ", ".join(f"{part}_next" for part in before)
    return f"""
        {way}_q = QuantizeLinear ({way}_h, {HIDDEN[0]}, {HIDDEN[1]})
        {way}_hidden_gates = {hidden_gates}
        {after} = {step(graph, cell, layer, f"{way}_read", f"{way}_hidden_gates", before)}
        {way}_out = Identity ({way}_h_next)"""


def _product(graph: Graph, weight: str, bias: Array, x: str, grid: tuple[str, str]) -> str:
    """Return the call that multiplies quantised rows by a transposed weight and adds a bias."""
    name = identifier(weight)
    quantised, scale = quantise(graph.weights[weight])
    graph.constant(name, quantised)
    graph.constant(f"{name}_scale", scale)
    graph.constant(f"{name}_bias", bias)
    graph.constant("weight_zero", np.array(0, np.int8))
    step_of_grid, zero = grid
    return (
        f"com.microsoft.MatMulIntegerToFloat"
        f" ({x}, {name}, {step_of_grid}, {name}_scale, {zero}, weight_zero, {name}_bias)"
    )
