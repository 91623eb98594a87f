"""ONNX graphs of the stack of gated linear recurrences, as app.runtime.recurrent_engine runs them.

All products of a window are computed at once; only the elementwise recurrence walks in time, in a Scan. Norm and
residual sum, gates and convolution are each one node of ONNX Runtime's, since a single step costs its nodes and the
reading of its weights.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from safetensors.numpy import save

from app.models.gated_recurrence import GatedRecurrentLanguageModel
from app.runtime.onnx_session import Precision
from app.runtime.recurrent_engine import WEIGHTS
from training.language_model.export import softmax_graph
from training.onnx.graph import LINEAR, Array, Extent, Graph, identifier, layout

PEAK: Final = 8.0  # largest number of a normed row that int8 holds, over the rms of all


def export_gated_language_model(model: GatedRecurrentLanguageModel) -> dict[str, bytes]:
    """Return the weights (float16) and graphs by file name; see `app.runtime.recurrent_engine`.

    A state holds each block's h (H) and the last inputs of its convolution (K - 1, D), block after block, then the
    vector before the softmax (E).
    """
    weights = {name: tensor.detach().half().numpy() for name, tensor in model.state_dict().items()}
    stored = save(weights)
    extents = layout(stored)
    files = {WEIGHTS: stored}
    for precision in LINEAR:
        files[f"recurrent.{precision}.onnx"] = _recurrent(model, weights, extents, precision)
        files[f"softmax.{precision}.onnx"] = softmax_graph(
            weights, extents, precision, "embedding.weight", "bias", PEAK * _rms_before_softmax(weights)
        )
    return files


def _recurrent(
    model: GatedRecurrentLanguageModel,
    weights: Mapping[str, Array],
    extents: Mapping[str, Extent],
    precision: Precision,
) -> bytes:
    """The graph of tokens (T, B), state (B, S) -> hidden (T, B, E), state_after (B, S). Inside: (B, T, ...)."""
    graph = Graph(precision, weights)
    blocks, hidden_size, width, tail = len(model.blocks), model.hidden_size, model.width, model.tail
    block_sizes = [hidden_size, tail * width] if tail else [hidden_size]
    size_out = model.embedding.embedding_dim
    sizes = graph.constant("state_sizes", np.array([*block_sizes * blocks, size_out]))
    graph.constant("flat", np.array([0, -1]))
    graph.constant("tail_shape", np.array([0, tail, width]))
    graph.constant("one", np.array(1, np.float32))
    graph.constant("scale", np.array(model.scale, np.float32))
    parts = [part for n in range(blocks) for part in ([f"h{n}", f"tail{n}"] if tail else [f"h{n}"])]
    embedding = graph.outside("embedding.weight")
    graph.lines += [
        f"{', '.join(parts)}, hidden_before = Split <axis = 1> (state, {sizes})",
        "ids = Transpose (tokens)",
        f"half_rows = Gather ({embedding}, ids)",
        "rows = Cast <to = 1> (half_rows)",
        "scaled_rows = Mul (rows, scale)",
    ]
    largest = float(np.abs(weights["embedding.weight"]).max()) * model.scale
    graph.split_linear("scaled_rows", "enter.weight", ["x0"], peak=largest)
    graph.lines += [
        f"y0 = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-6> (x0, {_vector(graph, _norm(0, blocks))})",
    ]
    for n in range(blocks):
        _add_block(graph, n, hidden_size, _norm(n + 1, blocks))
    graph.constant("last", np.array(-1))
    graph.split_linear(f"y{blocks}", "leave.weight", ["outputs"], peak=PEAK * _rms(weights, "norm.weight"))
    graph.lines += [
        "hidden = Transpose <perm = [1, 0, 2]> (outputs)",
        "hidden_after = Gather <axis = 1> (outputs, last)",
        f"state_after = Concat <axis = 1> ({', '.join(f'{part}_after' for part in parts)}, hidden_after)",
    ]
    size = sum(block_sizes) * blocks + size_out
    signature = (
        f"recurrent (int64[T,B] tokens, float[B,{size}] state)"
        f" => (float[T,B,{size_out}] hidden, float[B,{size}] state_after)"
    )
    return graph.model(signature, extents)


def _add_block(graph: Graph, n: int, hidden_size: int, next_norm: str) -> None:
    """Add the n-th block: x{n} and its norm y{n} (B, T, D) -> x{n + 1} and y{n + 1}."""
    block, h = f"blocks.{n}", f"float[B,{hidden_size}]"
    _add_convolution(graph, n, graph.weights[f"{block}.input.kernel"].astype(np.float32))
    bias = graph.weights[f"{block}.input.gates.bias"].astype(np.float32)
    graph.split_linear(f"mixed{n}", f"{block}.input.gates.weight", [f"z{n}", f"c{n}", f"g{n}"], bias=bias)
    graph.lines.append(f"""
        update{n} = Sigmoid (z{n})
        keep{n} = Sub (one, update{n})
        gain{n} = Mul (update{n}, c{n})
        h{n}_after, outputs{n} = Scan
            <num_scan_inputs = 2, scan_input_axes = [1, 1], scan_output_axes = [1], body = step{n}
            ({h} h, {h} keep, {h} gain) => ({h} h_next, {h} output) {{
                kept = Mul (keep, h)
                h_next = Add (kept, gain)
                output = Identity (h_next)
            }}> (h{n}, keep{n}, gain{n})
        gate{n} = com.microsoft.QuickGelu <alpha = 1.0> (g{n})
        gated{n} = Mul (outputs{n}, gate{n})""")
    graph.lines.append(f"recurrence{n} = {graph.linear(f'gated{n}', f'{block}.mixing.out.weight')}")
    _add_sum(graph, f"x{n}", f"recurrence{n}", f"{block}.mixing.norm.weight", f"middle{n}", f"normed{n}")
    peak = PEAK * _rms(graph.weights, f"{block}.mixing.norm.weight")
    graph.split_linear(f"normed{n}", f"{block}.mixing.up.weight", [f"a{n}", f"b{n}"], peak=peak)
    graph.lines += [
        f"inner_gate{n} = com.microsoft.QuickGelu <alpha = 1.0> (b{n})",
        f"inner{n} = Mul (a{n}, inner_gate{n})",
    ]
    graph.lines.append(f"mlp{n} = {graph.linear(f'inner{n}', f'{block}.mixing.down.weight')}")
    _add_sum(graph, f"middle{n}", f"mlp{n}", next_norm, f"x{n + 1}", f"y{n + 1}")


def _add_convolution(graph: Graph, n: int, kernel: Array) -> None:
    """Add the causal convolution of y{n} with `kernel` (K, D); of one step it is a product."""
    if len(kernel) == 1:
        graph.lines.append(f"mixed{n} = Mul (y{n}, {graph.constant(f'kernel{n}', kernel[0])})")
        return
    taps = graph.constant(f"kernel{n}", kernel.T[:, None])  # (D, 1, K)
    graph.lines.append(f"""
        tail{n}_rows = Reshape (tail{n}, tail_shape)
        mixed{n}, tail{n}_rows_after
            = com.microsoft.CausalConvWithState <channels_last = 1> (y{n}, {taps}, , tail{n}_rows)
        tail{n}_after = Reshape (tail{n}_rows_after, flat)""")


def _add_sum(graph: Graph, x: str, part: str, norm: str, total: str, normed: str) -> None:
    """Add the residual sum `total` of `x` and `part`, and its RMSNorm `normed` with the weight named `norm`."""
    graph.lines.append(
        f"{normed}, , , {total} = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-6>"
        f" ({x}, {part}, {_vector(graph, norm)})"
    )


def _norm(n: int, blocks: int) -> str:
    """The name of the norm's weight before block n, or before the output."""
    return f"blocks.{n}.input.norm.weight" if n < blocks else "norm.weight"


def _rms(weights: Mapping[str, Array], norm: str) -> float:
    """The rms of normed rows."""
    return float(np.sqrt(np.mean(weights[norm].astype(np.float32) ** 2)))


def _rms_before_softmax(weights: Mapping[str, Array]) -> float:
    """The rms of the vectors before the softmax, as if the numbers of a normed row were independent."""
    product = weights["leave.weight"].astype(np.float32) * weights["norm.weight"].astype(np.float32)  # (E, D)
    return float(np.sqrt(np.mean(np.sum(product**2, axis=1))))


def _vector(graph: Graph, weight: str) -> str:
    return graph.constant(identifier(weight), graph.weights[weight].astype(np.float32))
