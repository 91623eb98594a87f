"""The recurrent cells in ONNX: one step of each as a function that any graph may call, and ONNX's own operators.

The functions take the arguments of `app.models.steps.step`, by the same names, and return the state after the step. The
equations are those of app.models.recurrent. ONNX Runtime inlines functions. The operators read whole
sequences and order the gates differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.models.recurrent import STATE_VECTORS, Cell
from training.onnx.graph import Array, Graph, identifier

STEPS: dict[Cell, str] = {
    "rnn": """(input_gates, hidden_gates, h) => (h_next) {
        sum = Add (input_gates, hidden_gates)
        h_next = Tanh (sum)
    }""",
    "lstm": """(input_gates, hidden_gates, c, h) => (c_next, h_next) {
        sum = Add (input_gates, hidden_gates)
        i_sum, f_sum, g_sum, o_sum = Split <axis = 1, num_outputs = 4> (sum)
        i = Sigmoid (i_sum)
        f = Sigmoid (f_sum)
        o = Sigmoid (o_sum)
        g = Tanh (g_sum)
        kept = Mul (f, c)
        added = Mul (i, g)
        c_next = Add (kept, added)
        c_squashed = Tanh (c_next)
        h_next = Mul (o, c_squashed)
    }""",
    "peephole": """(input_gates, hidden_gates, c, h, peephole_i, peephole_f, peephole_o) => (c_next, h_next) {
        sum = Add (input_gates, hidden_gates)
        i_sum, f_sum, g_sum, o_sum = Split <axis = 1, num_outputs = 4> (sum)
        i_seen = Mul (peephole_i, c)
        f_seen = Mul (peephole_f, c)
        i_all = Add (i_sum, i_seen)
        f_all = Add (f_sum, f_seen)
        i = Sigmoid (i_all)
        f = Sigmoid (f_all)
        g = Tanh (g_sum)
        kept = Mul (f, c)
        added = Mul (i, g)
        c_next = Add (kept, added)
        o_seen = Mul (peephole_o, c_next)
        o_all = Add (o_sum, o_seen)
        o = Sigmoid (o_all)
        c_squashed = Tanh (c_next)
        h_next = Mul (o, c_squashed)
    }""",
    "cifg": """(input_gates, hidden_gates, c, h) => (c_next, h_next) {
        sum = Add (input_gates, hidden_gates)
        i_sum, g_sum, o_sum = Split <axis = 1, num_outputs = 3> (sum)
        i = Sigmoid (i_sum)
        o = Sigmoid (o_sum)
        g = Tanh (g_sum)
        change = Sub (g, c)
        changed = Mul (i, change)
        c_next = Add (c, changed)
        c_squashed = Tanh (c_next)
        h_next = Mul (o, c_squashed)
    }""",
    "gru": """(input_gates, hidden_gates, h, sizes) => (h_next) {
        rz_input, n_input = Split <axis = 1> (input_gates, sizes)
        rz_hidden, n_hidden = Split <axis = 1> (hidden_gates, sizes)
        rz_sum = Add (rz_input, rz_hidden)
        rz = Sigmoid (rz_sum)
        r, z = Split <axis = 1, num_outputs = 2> (rz)
        n_reset = Mul (r, n_hidden)
        n_sum = Add (n_input, n_reset)
        new = Tanh (n_sum)
        change = Sub (h, new)
        kept = Mul (z, change)
        h_next = Add (new, kept)
    }""",
    "peephole-cifg": """(input_gates, hidden_gates, c, h, peephole_i, peephole_o) => (c_next, h_next) {
        sum = Add (input_gates, hidden_gates)
        i_sum, g_sum, o_sum = Split <axis = 1, num_outputs = 3> (sum)
        i_seen = Mul (peephole_i, c)
        i_all = Add (i_sum, i_seen)
        i = Sigmoid (i_all)
        g = Tanh (g_sum)
        change = Sub (g, c)
        changed = Mul (i, change)
        c_next = Add (c, changed)
        o_seen = Mul (peephole_o, c_next)
        o_all = Add (o_sum, o_seen)
        o = Sigmoid (o_all)
        c_squashed = Tanh (c_next)
        h_next = Mul (o, c_squashed)
    }""",
}


def state_parts(cell: Cell) -> list[str]:
    """Return the names of a cell's state vectors in their order in a flat row; the last is the layer's output."""
    return ["c", "h"][-STATE_VECTORS[cell] :]


def step(graph: Graph, cell: Cell, layer: str, input_gates: str, hidden_gates: str, state: Sequence[str]) -> str:
    """Return the call that computes the state after a step, from the names of gates and of `state_parts`.

    `layer` is the prefix of the layer's weights, which may include peepholes.
    """
    function = cell.title().replace("-", "")
    graph.functions[function] = STEPS[cell]
    return f"seqserve.{function} ({', '.join([input_gates, hidden_gates, *state, *_further(graph, cell, layer)])})"


def _further(graph: Graph, cell: Cell, layer: str) -> list[str]:
    """Return the names of a function's further arguments: the rows of peepholes, the sizes of the GRU's split."""
    if cell == "gru":
        size = len(graph.weights[f"{layer}.bias_hn"])
        return [graph.constant(identifier(f"{layer}.split"), np.array([2 * size, size]))]
    rows = graph.weights.get(f"{layer}.peephole", ())
    return [graph.constant(identifier(f"{layer}.peephole.{n}"), row.astype(np.float32)) for n, row in enumerate(rows)]


def hidden_product(graph: Graph, cell: Cell, layer: str, h: str) -> str:
    """Return the lines that compute `hidden_gates` for `step` from the name of the previous output."""
    product = graph.linear(h, f"{layer}.weight_hh")
    bias = hidden_bias(graph, cell, layer)
    if bias is None:
        return f"hidden_gates = {product}"
    name = graph.constant(identifier(f"{layer}.hidden_bias"), bias)
    return f"hidden_product = {product}\nhidden_gates = Add (hidden_product, {name})"


def hidden_bias(graph: Graph, cell: Cell, layer: str) -> Array | None:
    """Return the bias of W_hh h_{t-1}, (G * H,): zeros and the GRU's bias_hn; None for the other cells."""
    if cell != "gru":
        return None
    inner = graph.weights[f"{layer}.bias_hn"].astype(np.float32)
    return np.concatenate([np.zeros(2 * len(inner), np.float32), inner])


@dataclass(frozen=True)
class Operator:
    """The ONNX operator of a cell, with its order of gates."""

    name: str
    gates: tuple[int | None, ...]  # its blocks of rows as indices among ours; None: zeros, there is no such gate
    peepholes: tuple[int | None, ...] = ()  # likewise for its input P, if the layer has peepholes
    attributes: str = ""


OPERATORS: dict[Cell, Operator] = {
    "rnn": Operator("RNN", (0,)),
    "lstm": Operator("LSTM", (0, 3, 1, 2)),
    "peephole": Operator("LSTM", (0, 3, 1, 2), (0, 2, 1)),
    "cifg": Operator("LSTM", (0, 2, None, 1), attributes=", input_forget = 1"),
    "gru": Operator("GRU", (1, 0, 2), attributes=", linear_before_reset = 1"),
    "peephole-cifg": Operator("LSTM", (0, 2, None, 1), (0, 1, None), ", input_forget = 1"),
}


def operator(graph: Graph, cell: Cell, layers: Sequence[str], x: str) -> str:
    """Return the call of ONNX's operator over `x` (T, B, I): one layer forwards, a second one backwards.

    Its outputs are (T, directions, B, H), then h and, for cells that have one, c after the last step.
    """
    known = OPERATORS[cell]
    matrices = [_stacked(graph, layers, part, known.gates) for part in ("weight_ih", "weight_hh")]
    bias = graph.constant(identifier(f"{layers[0]}.biases"), np.stack([_biases(graph, cell, each) for each in layers]))
    peepholes = ["", "", "", _stacked(graph, layers, "peephole", known.peepholes)] if known.peepholes else []
    direction = "bidirectional" if len(layers) > 1 else "forward"
    size = graph.weights[f"{layers[0]}.weight_hh"].shape[1]
    attributes = f'hidden_size = {size}, direction = "{direction}"{known.attributes}'
    return f"{known.name} <{attributes}> ({', '.join([x, *matrices, bias, *peepholes])})"


def _stacked(graph: Graph, layers: Sequence[str], part: str, order: Sequence[int | None]) -> str:
    """Return the name of a weight in the operator's order of gates, the layers stacked."""
    both = [_reordered(graph.weights[f"{layer}.{part}"], order) for layer in layers]
    rows = [weight.ravel() for weight in both] if part == "peephole" else both
    return graph.constant(identifier(f"{layers[0]}.{part}_all"), np.stack(rows))


def _biases(graph: Graph, cell: Cell, layer: str) -> Array:
    """Return the operator's two biases, concatenated."""
    bias = graph.weights[f"{layer}.bias"]
    inner = hidden_bias(graph, cell, layer)
    order = OPERATORS[cell].gates
    both = (bias, np.zeros_like(bias) if inner is None else inner)
    return np.concatenate([_reordered(each, order) for each in both])


def _reordered(weight: Array, order: Sequence[int | None]) -> Array:
    """(G * H, ...) or (peepholes, H) -> the operator's blocks in its own order, in float32."""
    blocks = np.split(weight.astype(np.float32), sum(index is not None for index in order))
    return np.concatenate([np.zeros_like(blocks[0]) if index is None else blocks[index] for index in order])
