"""The language model's graphs; see app.runtime.engine for what they compute."""

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save

from app.models.language_model import LanguageModel
from app.runtime.engine import WEIGHTS, Precision
from training.export.graph import LINEAR, Array, Graph, Place, layout


def export_language_model(model: LanguageModel) -> dict[str, bytes]:
    """Weights (float16) and graphs of a language model, file name -> content; see app.runtime.engine for the graphs."""
    weights = {name: tensor.detach().half().numpy() for name, tensor in model.state_dict().items()}
    if model.output.weight is model.embedding.weight:
        del weights["output.weight"]
    stored = save(weights)
    places = layout(stored)
    files = {WEIGHTS: stored}
    for precision in LINEAR:
        files[f"recurrent.{precision}.onnx"] = _recurrent(model, weights, places, precision)
        files[f"softmax.{precision}.onnx"] = _softmax(weights, places, precision)
    return files


def _recurrent(
    model: LanguageModel, weights: Mapping[str, Array], places: Mapping[str, Place], precision: Precision
) -> bytes:
    """The graph of tokens (T, B), state (B, S) -> hidden (T, B, H), state_after (B, S).

    A layer's input products are made for all steps at once; its recurrence is a Scan over the steps. The state is
    c and h of each layer in turn, so that its last numbers are the top layer's output.
    """
    graph = Graph(precision, weights)
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
    return graph.model(signature, places)


def _lstm_layer(graph: Graph, layer: str, index: int, size_in: int, size: int) -> str:
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


def _softmax(weights: Mapping[str, Array], places: Mapping[str, Place], precision: Precision) -> bytes:
    """The graph of hidden (N, H) -> log_probabilities (N, V)."""
    graph = Graph(precision, weights)
    weight = "output.weight" if "output.weight" in weights else "embedding.weight"
    bias = graph.constant("bias", weights["output.bias"].astype(np.float32))
    product = graph.linear("hidden", weight)
    graph.lines += [
        f"product = {product}",
        f"logits = Add (product, {bias})",
        "log_probabilities = LogSoftmax <axis = 1> (logits)",
    ]
    words, size = weights[weight].shape
    return graph.model(f"softmax (float[N,{size}] hidden) => (float[N,{words}] log_probabilities)", places)
