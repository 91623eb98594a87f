"""Digit readers -> ONNX graphs: pixels (B, 28, 28) uint8 -> logits (B, outputs).

int8: weights signed 8 bit with a scale a column, pixels as they are (unsigned, a step is 1/255), hidden states unsigned
8 bit with zero point 128 and a step of 1/127. A hidden state lies between -1 and 1, so the step is fixed: no answer
depends on what shares its batch, and nothing has to be measured at run time. The recurrence is a Scan of one step for
both directions. fp32: ONNX's own LSTM and GRU operators.
"""

import numpy as np
from safetensors.numpy import save
from torch import nn

from app.models.digits import SIDE, Layer, ReNet, RowReader
from app.runtime.engine import WEIGHTS, Precision
from training.export.graph import Array, Graph, quantise

HIDDEN = ("hidden_step", "hidden_zero")  # the grid of hidden states, as names of constants
PIXEL = ("pixel_step", "pixel_zero")


def export_digits(model: RowReader | ReNet) -> dict[str, bytes]:
    """Weights (float32) and graphs of a reader, file name -> content."""
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    return {WEIGHTS: save(weights)} | {f"reader.{p}.onnx": _reader(model, weights, p) for p in precisions}


def _reader(model: RowReader | ReNet, weights: dict[str, Array], precision: Precision) -> bytes:
    graph = Graph(precision, weights)
    for name, step, zero in (("hidden", 1 / 127, 128), ("pixel", 1 / 255, 0)):
        graph.constant(f"{name}_step", np.array(step, np.float32))
        graph.constant(f"{name}_zero", np.array(zero, np.uint8))
    features = _rows(graph, model) if isinstance(model, RowReader) else _renet(graph, model)
    graph.constant("output_weight", weights["output.weight"])
    graph.constant("output_bias", weights["output.bias"])
    graph.lines.append(f"logits = Gemm <transB = 1> ({features}, output_weight, output_bias)")
    signature = f"reader (uint8[B,{SIDE},{SIDE}] pixels) => (float[B,{len(weights['output.bias'])}] logits)"
    return graph.model(signature, {})


def _rows(graph: Graph, model: RowReader) -> str:
    """The name of the last step's output (B, 2H)."""
    graph.lines.append("rows = Transpose <perm = [1, 0, 2]> (pixels)")
    hidden = _sweep(graph, "lstm", model.lstm, "rows", SIDE, pixels=True)
    graph.constant("last", np.array(SIDE - 1))
    graph.lines.append(f"features = Gather <axis = 0> ({hidden}, last)")
    return "features"


def _renet(graph: Graph, model: ReNet) -> str:
    """The name of what the last layer says of every place, (B, H * W * 2H)."""
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
        read = _sweep(graph, f"across.{n}", model.across[n], f"lines{n}", side, pixels=n == 0)
        graph.lines += [
            f"read_plane{n} = Reshape ({read}, plane{n})",
            f"columns{n} = Transpose <perm = [1, 0, 2, 3]> (read_plane{n})",
            f"column_lines{n} = Reshape (columns{n}, down{n})",
        ]
        read = _sweep(graph, f"down.{n}", model.down[n], f"column_lines{n}", side)
        plane, size = f"plane_after{n}", 2 * hidden
        graph.lines.append(f"{plane} = Reshape ({read}, plane{n})")
    graph.constant("features_shape", np.array([-1, side * side * size]))
    graph.lines += [
        f"places = Transpose <perm = [2, 0, 1, 3]> ({plane})",
        "features = Reshape (places, features_shape)",
    ]
    return "features"


def _sweep(graph: Graph, layer: str, module: nn.Module, x: str, steps: int, *, pixels: bool = False) -> str:
    """The name of what `layer` reads in `x`: (T, N, I) -> (T, N, 2H)."""
    assert isinstance(module, nn.LSTM | nn.GRU)
    prefix = layer.replace(".", "")
    if graph.precision == "fp32":
        return _operator(graph, layer, prefix, module, x, steps, pixels=pixels)
    return _scan(graph, layer, prefix, module, x, steps, pixels=pixels)


def _operator(graph: Graph, layer: str, p: str, module: Layer, x: str, steps: int, *, pixels: bool) -> str:
    """ONNX's operator: its gates stand in another order, its output is (T, 2, N, H)."""
    size = module.hidden_size
    order, name, extra = ((1, 0, 2), "GRU", ", linear_before_reset = 1") if isinstance(module, nn.GRU) else (
        (0, 3, 1, 2), "LSTM", "")  # fmt: skip

    def reordered(weight: str) -> Array:
        both = (graph.weights[f"{layer}.{weight}_l0{suffix}"] for suffix in ("", "_reverse"))
        return np.stack([np.concatenate([np.split(each, len(order))[gate] for gate in order]) for each in both])

    graph.constant(f"{p}_w", reordered("weight_ih"))
    graph.constant(f"{p}_r", reordered("weight_hh"))
    graph.constant(f"{p}_b", np.concatenate([reordered("bias_ih"), reordered("bias_hh")], 1))
    graph.constant(f"{p}_shape", np.array([steps, -1, 2 * size]))
    source = x
    if pixels:
        source = f"{p}_grey"
        graph.lines += [f"{p}_real = Cast <to = 1> ({x})", f"{source} = Mul ({p}_real, pixel_step)"]
    graph.lines += [
        f'{p}_y = {name} <hidden_size = {size}, direction = "bidirectional"{extra}> ({source}, {p}_w, {p}_r, {p}_b)',
        f"{p}_turned = Transpose <perm = [0, 2, 1, 3]> ({p}_y)",
        f"{p}_out = Reshape ({p}_turned, {p}_shape)",
    ]
    return f"{p}_out"


def _scan(graph: Graph, layer: str, p: str, module: Layer, x: str, steps: int, *, pixels: bool) -> str:
    """Input products of all steps at once; one Scan over the steps, forwards and backwards side by side."""
    size, gru = module.hidden_size, isinstance(module, nn.GRU)
    widths = {"rz": 2 * size, "n": size} if gru else {"gates": 4 * size}  # what one product makes
    graph.constant(f"{p}_flat", np.array([-1, module.input_size]))
    graph.lines.append(f"{p}_rows = Reshape ({x}, {p}_flat)")
    quantised, grid = f"{p}_rows", PIXEL
    if not pixels:
        quantised, grid = f"{p}_quantised", HIDDEN
        graph.lines.append(f"{quantised} = QuantizeLinear ({p}_rows, {HIDDEN[0]}, {HIDDEN[1]})")
    body, scanned, inputs = list[str](), list[str](), list[str]()
    for way, suffix in (("f", ""), ("b", "_reverse")):
        row = 0
        body.append(f"{way}_q = QuantizeLinear ({way}_h, {HIDDEN[0]}, {HIDDEN[1]})")
        for part, width in widths.items():
            rows, row = slice(row, row + width), row + width
            bias, bias_h = (
                graph.weights[f"{layer}.bias_{side}_l0{suffix}"][rows].astype(np.float32) for side in ("ih", "hh")
            )
            if part != "n":  # a reset gate stands between the two biases of a gru's new state
                bias, bias_h = bias + bias_h, np.zeros_like(bias_h)
            call = _product(graph, f"{layer}.weight_ih_l0{suffix}", rows, bias, quantised, grid)
            shape = graph.constant(f"{p}_{part}_shape", np.array([steps, -1, width]))
            graph.lines += [
                f"{p}_{way}_{part}_rows = {call}",
                f"{p}_{way}_{part} = Reshape ({p}_{way}_{part}_rows, {shape})",
            ]
            body.append(
                f"{way}_{part}_h = {_product(graph, f'{layer}.weight_hh_l0{suffix}', rows, bias_h, f'{way}_q', HIDDEN)}"
            )
            scanned.append(f"{p}_{way}_{part}")
            inputs.append(f"float[N,{width}] {way}_{part}")
        body += _gru_step(way) if gru else _lstm_step(way)
    states = ["f_h", "b_h"] if gru else ["f_h", "f_c", "b_h", "b_c"]
    directions = ", ".join(["0"] * len(widths) + ["1"] * len(widths))
    taken = ", ".join([f"float[N,{size}] {state}" for state in states] + inputs)
    given = ", ".join([f"float[N,{size}] {name}" for name in [*(f"{s}_next" for s in states), "f_out", "b_out"]])
    graph.constant(f"{p}_size", np.array([size]))
    graph.lines.append(f"""
        {p}_count = Shape <start = 1, end = 2> ({x})
        {p}_state_shape = Concat <axis = 0> ({p}_count, {p}_size)
        {p}_zeros = ConstantOfShape <value = float[1] {{0.0}}> ({p}_state_shape)
        {", ".join(f"{p}_{state}_last" for state in states)}, {p}_forward, {p}_backward = Scan
            <num_scan_inputs = {len(scanned)}, scan_input_directions = [{directions}],
             scan_output_directions = [0, 1], body = {p}_step ({taken}) => ({given}) {{
            {chr(10).join(body)}
            }}> ({", ".join([f"{p}_zeros"] * len(states) + scanned)})
        {p}_out = Concat <axis = 2> ({p}_forward, {p}_backward)""")
    return f"{p}_out"


def _product(graph: Graph, weight: str, rows: slice, bias: Array, x: str, grid: tuple[str, str]) -> str:
    """The call that multiplies quantised rows with the transpose of some rows of a weight, and adds a bias."""
    name = f"{weight.replace('.', '_')}_{rows.start}"
    quantised, scale = quantise(graph.weights[weight][rows])
    graph.constant(name, quantised)
    graph.constant(f"{name}_scale", scale)
    graph.constant(f"{name}_bias", bias)
    graph.constant("weight_zero", np.array(0, np.int8))
    step, zero = grid
    return f"com.microsoft.MatMulIntegerToFloat ({x}, {name}, {step}, {name}_scale, {zero}, weight_zero, {name}_bias)"


def _gru_step(way: str) -> list[str]:
    """The equations of app.models.digits._gru_step, of one direction."""
    w = way
    return [
        f"{w}_rz_sum = Add ({w}_rz, {w}_rz_h)",
        f"{w}_rz_open = Sigmoid ({w}_rz_sum)",
        f"{w}_r, {w}_z = Split <axis = 1, num_outputs = 2> ({w}_rz_open)",
        f"{w}_reset = Mul ({w}_r, {w}_n_h)",
        f"{w}_n_sum = Add ({w}_n, {w}_reset)",
        f"{w}_new = Tanh ({w}_n_sum)",
        f"{w}_old = Sub ({w}_h, {w}_new)",
        f"{w}_kept = Mul ({w}_z, {w}_old)",
        f"{w}_h_next = Add ({w}_kept, {w}_new)",
        f"{w}_out = Identity ({w}_h_next)",
    ]


def _lstm_step(way: str) -> list[str]:
    """The equations of app.models.digits._lstm_step, of one direction."""
    w = way
    return [
        f"{w}_sum = Add ({w}_gates, {w}_gates_h)",
        f"{w}_i, {w}_f, {w}_g, {w}_o = Split <axis = 1, num_outputs = 4> ({w}_sum)",
        f"{w}_i_open = Sigmoid ({w}_i)",
        f"{w}_f_open = Sigmoid ({w}_f)",
        f"{w}_o_open = Sigmoid ({w}_o)",
        f"{w}_candidate = Tanh ({w}_g)",
        f"{w}_kept = Mul ({w}_f_open, {w}_c)",
        f"{w}_added = Mul ({w}_i_open, {w}_candidate)",
        f"{w}_c_next = Add ({w}_kept, {w}_added)",
        f"{w}_squashed = Tanh ({w}_c_next)",
        f"{w}_h_next = Mul ({w}_o_open, {w}_squashed)",
        f"{w}_out = Identity ({w}_h_next)",
    ]
