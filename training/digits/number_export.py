"""The number reader -> ONNX graphs: pixels (28, W) uint8, W a multiple of its columns -> logits (T, 11).

One strip at a time, so no answer depends on other strips. Quantisation is that of `training.digits.export`.
"""

import numpy as np
from safetensors.numpy import save

from app.models.digits import SIDE
from app.models.numbers import BLANK, NumberReader
from app.runtime.onnx_session import Precision
from app.runtime.recurrent_engine import WEIGHTS
from training.digits.export import ONE_LINE, pixel_graph, sweep
from training.onnx.graph import Array


def export_numbers(model: NumberReader) -> dict[str, bytes]:
    """Weights (float32) and graphs of a reader, file name -> content."""
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    return {WEIGHTS: save(weights)} | {f"reader.{p}.onnx": _reader(model, weights, p) for p in precisions}


def _reader(model: NumberReader, weights: dict[str, Array], precision: Precision) -> bytes:
    graph = pixel_graph(precision, weights)
    size = weights["output.weight"].shape[1]
    graph.constant("cut", np.array([SIDE, -1, model.columns]))
    graph.constant("line", np.array([-1, 1, SIDE * model.columns]))
    graph.constant("flat", np.array([-1, size]))
    graph.lines += [
        "windows = Reshape (pixels, cut)",
        "turned = Transpose <perm = [1, 0, 2]> (windows)",
        "steps = Reshape (turned, line)",
    ]
    hidden = "steps"
    for index, layer in enumerate(model.layers):
        hidden = sweep(graph, f"layers.{index}", layer, hidden, ONE_LINE, pixels=index == 0)
    graph.constant("output_weight", weights["output.weight"])
    graph.constant("output_bias", weights["output.bias"])
    graph.lines += [
        f"features = Reshape ({hidden}, flat)",
        "logits = Gemm <transB = 1> (features, output_weight, output_bias)",
    ]
    return graph.model(f"reader (uint8[{SIDE},W] pixels) => (float[T,{BLANK + 1}] logits)", {})
