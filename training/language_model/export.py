"""ONNX graphs of the language model, as app.runtime.recurrent_engine runs them."""

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save

from app.models.language_model import LanguageModel
from app.models.recurrent import GATES, Cell
from app.runtime.onnx_session import Precision
from app.runtime.recurrent_engine import WEIGHTS
from training.onnx.cells import hidden_product, state_parts, step
from training.onnx.graph import LINEAR, Array, Extent, Graph, layout


def export_language_model(model: LanguageModel) -> dict[str, bytes]:
    """Return the weights (float16) and graphs of a language model by file name; see `app.runtime.recurrent_engine`."""
    weights = {name: tensor.detach().half().numpy() for name, tensor in model.state_dict().items()}
    if model.output.weight is model.embedding.weight:
        del weights["output.weight"]
    stored = save(weights)
    extents = layout(stored)
    files = {WEIGHTS: stored}
    output = "output.weight" if "output.weight" in weights else "embedding.weight"
    for precision in LINEAR:
        files[f"recurrent.{precision}.onnx"] = _recurrent(model, weights, extents, precision)
        files[f"softmax.{precision}.onnx"] = softmax_graph(weights, extents, precision, output, "output.bias")
    return files


def softmax_graph(
    weights: Mapping[str, Array],
    extents: Mapping[str, Extent],
    precision: Precision,
    weight: str,
    bias: str,
    peak: float | None = None,
) -> bytes:
    """Return the graph of hidden (N, H) -> log_probabilities (N, V), those of `targets` and of the `count` likeliest.

    `weight` and `bias` name the output layer's among `weights`; `peak`: see `Graph.split_linear`.
    """
    graph = Graph(precision, weights)
    graph.split_linear("hidden", weight, ["logits"], bias=weights[bias].astype(np.float32), peak=peak)
    graph.lines += [
        "log_probabilities = LogSoftmax <axis = 1> (logits)",
        "of_targets = GatherElements <axis = 1> (log_probabilities, targets)",
        "of_likeliest, likeliest = TopK <axis = 1> (log_probabilities, count)",
    ]
    words, size = weights[weight].shape
    signature = (
        f"softmax (float[N,{size}] hidden, int64[N,M] targets, int64[1] count) => (float[N,{words}] log_probabilities,"
        " float[N,M] of_targets, int64[N,K] likeliest, float[N,K] of_likeliest)"
    )
    return graph.model(signature, extents)


def _recurrent(
    model: LanguageModel, weights: Mapping[str, Array], extents: Mapping[str, Extent], precision: Precision
) -> bytes:
    """The graph of tokens (T, B), state (B, S) -> hidden (T, B, H), state_after (B, S).

    A layer's input products are computed for all steps at once; its recurrence is a Scan over the steps. The state
    concatenates each layer's vectors, c before h, so that its last numbers are the top layer's output.
    """
    graph, recurrent = Graph(precision, weights), model.recurrent
    graph.constant("one", np.array([1]))
    embedding = graph.outside("embedding.weight")
    graph.lines += ["shape = Shape (tokens)", f"rows = Gather ({embedding}, tokens)", "x0 = Cast <to = 1> (rows)"]
    position, size_in, after = 0, model.embedding.embedding_dim, list[str]()
    for n, size in enumerate(recurrent.hidden_sizes):
        for part in state_parts(recurrent.cell):
            start, end = (graph.constant(f"at{at}", np.array([at])) for at in (position, position + size))
            graph.lines.append(f"{part}{n} = Slice (state, {start}, {end}, one)")
            after.append(f"{part}{n}_after")
            position += size
        graph.lines.append(_layer(graph, recurrent.cell, n, size_in, size))
        size_in = size
    graph.lines += [
        f"hidden = Identity (x{len(recurrent.hidden_sizes)})",
        f"state_after = Concat <axis = 1> ({', '.join(after)})",
    ]
    signature = (
        f"recurrent (int64[T,B] tokens, float[B,{position}] state)"
        f" => (float[T,B,{size_in}] hidden, float[B,{position}] state_after)"
    )
    return graph.model(signature, extents)


def _layer(graph: Graph, cell: Cell, n: int, size_in: int, size: int) -> str:
    """The n-th layer: x{n} (T, B, I) -> x{n + 1} (T, B, H)."""
    layer, parts = f"recurrent.layers.{n}", state_parts(cell)
    wide = GATES[cell] * size
    graph.constant(f"flat{n}", np.array([-1, size_in]))
    graph.constant(f"gates{n}", np.array([wide]))
    bias = graph.constant(f"bias{n}", graph.weights[f"{layer}.bias"].astype(np.float32))
    input_product = graph.linear(f"x{n}_rows", f"{layer}.weight_ih")
    call = step(graph, cell, layer, "input_gates", "hidden_gates", parts)
    before, after = (", ".join(f"float[B,{size}] {part}{end}" for part in parts) for end in ("", "_next"))
    return f"""
        x{n}_rows = Reshape (x{n}, flat{n})
        input_product{n} = {input_product}
        biased{n} = Add (input_product{n}, {bias})
        gates_shape{n} = Concat <axis = 0> (shape, gates{n})
        input_gates{n} = Reshape (biased{n}, gates_shape{n})
        {", ".join(f"{part}{n}_after" for part in parts)}, x{n + 1} = Scan <num_scan_inputs = 1, body = step{n}
            ({before}, float[B,{wide}] input_gates) => ({after}, float[B,{size}] output) {{
                {hidden_product(graph, cell, layer, "h")}
                {", ".join(f"{part}_next" for part in parts)} = {call}
                output = Identity (h_next)
            }}> ({", ".join(f"{part}{n}" for part in parts)}, input_gates{n})"""
