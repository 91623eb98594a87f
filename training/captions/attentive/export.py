"""Export of attentive captioners, their CNN and detector; app.runtime.families.captions documents the graphs."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from safetensors.numpy import save
from torch import fx

from app.images import ENCODER_SIZE, Bytes
from app.models.attentive_captioner import AttentiveCaptioner
from app.models.efficientnet_lite import CHANNELS, POOLED
from app.runtime.onnx_session import Precision
from app.runtime.recurrent_engine import WEIGHTS
from training.captions.export import advance, biased, cnn_weights, halves, translate_cnn
from training.onnx.cells import state_parts
from training.onnx.convolutions import quantised
from training.onnx.graph import LINEAR, Array, Extent, Graph, layout

CELLS = 81


def export_attentive(
    model: AttentiveCaptioner, cnn: fx.GraphModule, detector: bytes, pooled: Array, photographs: Iterable[Bytes]
) -> dict[str, bytes]:
    """Weights (float16) and graphs of a captioner, its CNN and its detector, file name -> content.

    `pooled` (N, 1280) are the vectors of training photographs, from which a photograph's distance is measured;
    `photographs`, some of them (260, 260, 3), give the scales of the CNN's int8 activations.
    """
    weights = halves(model) | cnn_weights(cnn)
    stored = save(weights)
    extents = layout(stored)
    seeing = _cnn(cnn, weights, extents)
    feeds = ({"pixels": pixels[None]} for pixels in photographs)
    files = {WEIGHTS: stored, "cnn.fp32.onnx": seeing, "detector.onnx": _of_any_size(detector)}
    files["cnn.int8.onnx"] = quantised(seeing, stored, feeds)
    for precision in LINEAR:
        files[f"begin.{precision}.onnx"] = _begin(model, weights, extents, precision, pooled)
        files[f"step.{precision}.onnx"] = _step(model, weights, extents, precision)
    return files


def _cnn(cnn: fx.GraphModule, weights: Mapping[str, Array], extents: Mapping[str, Extent]) -> bytes:
    """The graph of pixels (B, 260, 260, 3) uint8 -> grid (B, 81, 352), pooled (B, 1280)."""
    graph = Graph("fp32", weights)
    graph.constant("unit", np.array(1 / 128, np.float32))
    graph.constant("middle", np.array(127, np.uint8))
    graph.constant("flat", np.array([0, 0, -1]))
    graph.lines += [
        "normal = DequantizeLinear (pixels, unit, middle)",  # as app.images.encoder_input
        "photograph = Transpose <perm = [0, 3, 1, 2]> (normal)",
    ]
    cells, vector = translate_cnn(graph, cnn)
    graph.lines += [
        f"columns = Reshape ({cells}, flat)",
        "grid = Transpose <perm = [0, 2, 1]> (columns)",
        f"pooled = Identity ({vector})",
    ]
    signature = (
        f"cnn (uint8[B,{ENCODER_SIZE},{ENCODER_SIZE},3] pixels)"
        f" => (float[B,{CELLS},{CHANNELS}] grid, float[B,{POOLED}] pooled)"
    )
    return graph.model(signature, extents)


def _of_any_size(detector: bytes) -> bytes:
    """Return a detector's graph of images (1, 3, 416, 416) for other heights and widths."""
    model = onnx.load_from_string(detector)
    (images,), (output,) = model.graph.input, model.graph.output
    for value, axis, name in ((images, 2, "height"), (images, 3, "width"), (output, 1, "cells")):
        value.type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]  # shapes in between
    return bytes(model.SerializeToString())


def _begin(
    model: AttentiveCaptioner,
    weights: Mapping[str, Array],
    extents: Mapping[str, Extent],
    precision: Precision,
    pooled: Array,
) -> bytes:
    """The graph of grid, pooled and tags (B, T, 2) -> state (B, S), distance (B,), slots, keys and mask to attend to.

    The distance is the root mean square of the vector's differences from the mean, in standard deviations.
    """
    graph = Graph(precision, weights)
    embedding = weights["embedding.weight"].astype(np.float32)
    labels = embedding[model.labels.numpy()].mean(1)
    no_tag = weights["no_tag"].astype(np.float32)
    graph.constant("label_vectors", np.concatenate([labels, no_tag, np.zeros_like(no_tag)]))
    graph.constant("kind_vectors", weights["kinds.weight"].astype(np.float32))
    for name, value in (("first", 0), ("second", 1), ("label_count", len(labels))):
        graph.constant(name, np.array(value))
    graph.constant("across", np.array([1]))
    graph.constant("last", np.array([2]))
    graph.constant("open", np.array(0, np.float32))
    graph.constant("shut", np.array(-np.inf, np.float32))
    known = pooled.astype(np.float32)
    graph.constant("centre", known.mean(0))
    graph.constant("deviation", known.std(0) + 1e-2)
    graph.constant("no_mask", np.zeros((1, CELLS), np.float32))
    graph.lines += [
        "tag_labels = Gather <axis = 2> (tags, first)",  # (B, T)
        "tag_kinds = Gather <axis = 2> (tags, second)",
        "of_label = Gather (label_vectors, tag_labels)",  # (B, T, E)
        "of_kind = Gather (kind_vectors, tag_kinds)",
        "is_label = Less (tag_labels, label_count)",
        "label_share = Cast <to = 1> (is_label)",
        "label_column = Unsqueeze (label_share, last)",
        "kind_part = Mul (of_kind, label_column)",
        "tag_slots = Add (of_label, kind_part)",
        "tag_sum = ReduceSum <keepdims = 0> (tag_slots, across)",  # (B, E)
        f"tag_state = {graph.linear('tag_sum', 'tags.weight')}",
    ]
    biased(graph, "image", graph.linear("pooled", "image.weight"), weights["image.bias"])
    biased(graph, "cells_sum", graph.linear("grid", "cells.weight"), weights["cells.bias"])
    graph.lines += [
        "state_sum = Add (image, tag_state)",
        "state = Tanh (state_sum)",
        "off_centre = Sub (pooled, centre)",
        "deviations = Div (off_centre, deviation)",
        "squares = Mul (deviations, deviations)",
        "mean_square = ReduceMean <keepdims = 0> (squares, across)",
        "distance = Sqrt (mean_square)",
        "cells = Relu (cells_sum)",
        "slots = Concat <axis = 1> (cells, tag_slots)",
        "is_empty = Greater (tag_labels, label_count)",
        "tag_mask = Where (is_empty, shut, open)",
        "batch = Shape <start = 0, end = 1> (tags)",
        "one = Shape <start = 0, end = 1> (no_mask)",
        "mask_shape = Concat <axis = 0> (batch, one)",
        "cell_mask = Expand (no_mask, mask_shape)",
        "mask = Concat <axis = 1> (cell_mask, tag_mask)",
    ]
    biased(graph, "keys", graph.linear("slots", "keys.weight"), weights["keys.bias"])
    size, wide = model.embedding.embedding_dim, model.keys.out_features
    signature = (
        f"begin (float[B,{CELLS},{CHANNELS}] grid, float[B,{POOLED}] pooled, int64[B,T,2] tags) =>"
        f" (float[B,{model.state_size}] state, float[B] distance,"
        f" float[B,L,{size}] slots, float[B,L,{wide}] keys, float[B,L] mask)"
    )
    return graph.model(signature, extents)


def _step(
    model: AttentiveCaptioner, weights: Mapping[str, Array], extents: Mapping[str, Extent], precision: Precision
) -> bytes:
    """The graph of one word of hypotheses (B,), each of one of the photographs (P,) of `slots`, `keys` and `mask`."""
    graph = Graph(precision, weights)
    parts = state_parts(model.cell)
    product = graph.linear("output", "embedding.weight")  # first, so that the matrix is there in float32 as well
    graph.lines += [
        f"rows = Gather ({graph.outside('embedding.weight')}, tokens)",
        "word = Cast <to = 1> (rows)",
        f"{', '.join(parts)} = Split <axis = 1, num_outputs = {len(parts)}> (state)",
    ]
    after = advance(graph, model.cell, "word", parts)
    for name, value in (
        ("sentinel", weights["sentinel"].astype(np.float32)),
        ("energy", weights["energy.weight"][0].astype(np.float32)),
        ("scale", weights["scale"].astype(np.float32)),
        ("between", np.array([1])),
        ("inner", np.array([-1])),
        ("start", np.array([0])),
    ):
        graph.constant(name, value)
    biased(graph, "said", graph.linear("h_next", "said.weight"), weights["said.bias"])
    graph.lines += [
        f"query = {graph.linear('h_next', 'query.weight')}",  # (B, A)
        "query_row = Unsqueeze (query, between)",
        "own_keys = Gather (keys, photographs)",  # (B, L, A)
        "met = Add (own_keys, query_row)",
        "matched = Tanh (met)",
        "weighted = Mul (matched, energy)",
        "energies = ReduceSum <keepdims = 0> (weighted, inner)",  # (B, L)
        "own_mask = Gather (mask, photographs)",
        "allowed = Add (energies, own_mask)",
        "language_met = Add (query, sentinel)",
        "language_matched = Tanh (language_met)",
        "language_weighted = Mul (language_matched, energy)",
        "language = ReduceSum <keepdims = 1> (language_weighted, inner)",  # (B, 1)
        "all_energies = Concat <axis = 1> (allowed, language)",
        "attention = Softmax <axis = 1> (all_energies)",
        "on_slots = Slice (attention, start, inner, between)",  # (B, L)
        "on_slots_row = Unsqueeze (on_slots, between)",
        "own_slots = Gather (slots, photographs)",  # (B, L, E)
        "attended_row = MatMul (on_slots_row, own_slots)",
        "attended = Squeeze (attended_row, between)",
        "output_sum = Add (said, attended)",
        "output = Mul (output_sum, scale)",
    ]
    biased(graph, "logits", product, weights["bias"])
    graph.lines += [
        "log_probabilities = LogSoftmax <axis = 1> (logits)",
        f"state_after = Concat <axis = 1> ({', '.join(after)})",
    ]
    size, wide, state = model.embedding.embedding_dim, model.keys.out_features, model.state_size
    signature = (
        f"step (int64[B] tokens, float[B,{state}] state, int64[B] photographs,"
        f" float[P,L,{size}] slots, float[P,L,{wide}] keys, float[P,L] mask)"
        f" => (float[B,{len(weights['bias'])}] log_probabilities, float[B,{state}] state_after, float[B,M] attention)"
    )
    return graph.model(signature, extents)
