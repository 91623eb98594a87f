"""The recurrent cells in ONNX: one step of each as a function that any graph may call, and ONNX's own operators.

The functions take what `app.models.steps.step` takes, by the same names, and give the state after: the equations are
those of app.models.recurrent. ONNX Runtime writes a function's body in place of each call. The operators read whole
sequences; they order gates otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.models.recurrent import KEPT, Cell
from training.onnx.graph import Array, Graph, identifier

STEPS: dict[Cell, str] = {
    "rnn": """(read, recalled, h) => (h_next) {
        sum = Add (read, recalled)
        h_next = Tanh (sum)
    }""",
    "lstm": """(read, recalled, c, h) => (c_next, h_next) {
        sum = Add (read, recalled)
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
    "peephole": """(read, recalled, c, h, peephole_i, peephole_f, peephole_o) => (c_next, h_next) {
        sum = Add (read, recalled)
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
    "cifg": """(read, recalled, c, h) => (c_next, h_next) {
        sum = Add (read, recalled)
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
    "gru": """(read, recalled, h, sizes) => (h_next) {
        rz_read, n_read = Split <axis = 1> (read, sizes)
        rz_recalled, n_recalled = Split <axis = 1> (recalled, sizes)
        rz_sum = Add (rz_read, rz_recalled)
        rz = Sigmoid (rz_sum)
        r, z = Split <axis = 1, num_outputs = 2> (rz)
        n_reset = Mul (r, n_recalled)
        n_sum = Add (n_read, n_reset)
        new = Tanh (n_sum)
        change = Sub (h, new)
        kept = Mul (z, change)
        h_next = Add (new, kept)
    }""",
    "peephole-cifg": """(read, recalled, c, h, peephole_i, peephole_o) => (c_next, h_next) {
        sum = Add (read, recalled)
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


def carried(cell: Cell) -> list[str]:
    """What a cell carries on, as a flat row has it: what ends the row is what the next layer sees."""
    return ["c", "h"][-KEPT[cell] :]


def step(graph: Graph, cell: Cell, layer: str, read: str, recalled: str, state: Sequence[str]) -> str:
    """The call that gives the state after a step, from the names of what is read and recalled and of `carried`.

    `layer` names the layer's weights, among which there may be peepholes.
    """
    function = cell.title().replace("-", "")
    graph.functions[function] = STEPS[cell]
    return f"seqserve.{function} ({', '.join([read, recalled, *state, *_further(graph, cell, layer)])})"


def _further(graph: Graph, cell: Cell, layer: str) -> list[str]:
    """The names of what a function takes besides: the rows of peepholes, the GRU's numbers of rows to part."""
    if cell == "gru":
        size = len(graph.weights[f"{layer}.bias_hn"])
        return [graph.constant(identifier(f"{layer}.parted"), np.array([2 * size, size]))]
    rows = graph.weights.get(f"{layer}.peephole", ())
    return [graph.constant(identifier(f"{layer}.peephole.{n}"), row.astype(np.float32)) for n, row in enumerate(rows)]


def recall(graph: Graph, cell: Cell, layer: str, h: str) -> str:
    """The lines that make `recalled`, as `step` takes it, from the name of the output before."""
    product = graph.linear(h, f"{layer}.weight_hh")
    bias = recalled_bias(graph, cell, layer)
    if bias is None:
        return f"recalled = {product}"
    name = graph.constant(identifier(f"{layer}.recalled_bias"), bias)
    return f"recalled_product = {product}\nrecalled = Add (recalled_product, {name})"


def recalled_bias(graph: Graph, cell: Cell, layer: str) -> Array | None:
    """What is added to W_hh h_{t-1}, (G * H,): the GRU's bias_hn at its new state; None of the other cells."""
    if cell != "gru":
        return None
    inner = graph.weights[f"{layer}.bias_hn"].astype(np.float32)
    return np.concatenate([np.zeros(2 * len(inner), np.float32), inner])


@dataclass(frozen=True)
class Operator:
    """How ONNX's own operator says what a cell does."""

    name: str
    gates: tuple[int | None, ...]  # its blocks of rows as places among ours; None: 0, there is no such gate
    peepholes: tuple[int | None, ...] = ()  # the same of its input P, which it has if the layer has peepholes
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
    """The call of ONNX's operator that reads `x` (T, B, I) with one layer forwards, or with a second one backwards.

    Its first output is (T, directions, B, H), then come h and, of the cells that have one, c after the last step.
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
    """The name of a weight in the operator's order of gates, a layer after the other."""
    both = [_reordered(graph.weights[f"{layer}.{part}"], order) for layer in layers]
    rows = [weight.ravel() for weight in both] if part == "peephole" else both
    return graph.constant(identifier(f"{layers[0]}.{part}_all"), np.stack(rows))


def _biases(graph: Graph, cell: Cell, layer: str) -> Array:
    """The operator's two biases, one after the other."""
    bias = graph.weights[f"{layer}.bias"]
    inner = recalled_bias(graph, cell, layer)
    order = OPERATORS[cell].gates
    both = (bias, np.zeros_like(bias) if inner is None else inner)
    return np.concatenate([_reordered(each, order) for each in both])


def _reordered(weight: Array, order: Sequence[int | None]) -> Array:
    """(G * H, ...) or (peepholes, H) -> the operator's blocks in its own order, in float32."""
    blocks = np.split(weight.astype(np.float32), sum(place is not None for place in order))
    return np.concatenate([np.zeros_like(blocks[0]) if place is None else blocks[place] for place in order])
