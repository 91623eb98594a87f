"""Export of captioners and their CNNs to ONNX; app.runtime.families.captions documents the graphs.

The decoder is exported in int8, with a scale a row as in training.onnx.graph, and in float32. The CNN is exported in
float32 alone: int8 would save little time and cost quality, see training/LOG.md.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import fx, nn
from torch.nn import functional as F

from app.errors import SettingsError
from app.images import PHOTO_SIZE, normalised
from app.models.captioner import Captioner
from app.models.recurrent import Cell
from app.runtime.onnx_session import Precision
from app.runtime.recurrent_engine import WEIGHTS
from training.onnx.cells import hidden_product, state_parts, step
from training.onnx.graph import LINEAR, Array, Extent, Graph, layout

CNN = "cnn."  # prefix of the names of the CNN's weights


def export_captions(model: Captioner, network: fx.GraphModule) -> dict[str, bytes]:
    """Weights (float16) and graphs of a captioner and of its CNN, file name -> content.

    `network` takes the output of `app.images.normalised`. Raise SettingsError for an unknown layer.
    """
    weights = halves(model) | cnn_weights(network)
    if model.output.weight is model.embedding.weight:
        del weights["output.weight"]
    stored = save(weights)
    extents = layout(stored)
    files = {WEIGHTS: stored, "cnn.fp32.onnx": _cnn(network, weights, extents)}
    for precision in LINEAR:
        files[f"begin.{precision}.onnx"] = _begin(model, weights, extents, precision)
        files[f"step.{precision}.onnx"] = _step(model, weights, extents, precision)
    return files


def halves(module: nn.Module) -> dict[str, Array]:
    """Return a module's weights in float16."""
    return {name: tensor.detach().contiguous().half().numpy() for name, tensor in module.state_dict().items()}


def cnn_weights(network: fx.GraphModule) -> dict[str, Array]:
    """Return a CNN's weights in float16, by their names in a bundle."""
    return {f"{CNN}{name}": value for name, value in halves(network).items()}


# the CNN


def _cnn(network: fx.GraphModule, weights: Mapping[str, Array], extents: Mapping[str, Extent]) -> bytes:
    """The graph of pixels (B, 224, 224, 3) uint8 -> features (B, F)."""
    graph = Graph("fp32", weights)
    black, white = (normalised(np.full((1, 1, 3), level, np.uint8))[:, 0, 0] for level in (0, 255))
    graph.constant("contrast", (white - black) / np.float32(255))
    graph.constant("black", black)
    graph.lines += [
        "real = Cast <to = 1> (pixels)",
        "scaled = Mul (real, contrast)",
        "normal = Add (scaled, black)",
        "photograph = Transpose <perm = [0, 3, 1, 2]> (normal)",
    ]
    (features,) = translate_cnn(graph, network)
    graph.lines.append(f"features = Identity ({features})")
    with torch.inference_mode():
        size = network(torch.zeros(1, 3, PHOTO_SIZE, PHOTO_SIZE)).shape[-1]
    signature = f"cnn (uint8[B,{PHOTO_SIZE},{PHOTO_SIZE},3] pixels) => (float[B,{size}] features)"
    return graph.model(signature, extents)


def translate_cnn(graph: Graph, network: fx.GraphModule) -> list[str]:
    """Add a CNN applied to `photograph` (B, 3, H, W); return its outputs' names."""
    return _Translation(graph).of(network)


class _Translation:
    """A translation of a traced torch module to lines of a graph, node by node."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def of(self, network: fx.GraphModule) -> list[str]:
        """Translate the network applied to `photograph`; return its outputs' names."""
        names: dict[fx.Node, str] = {}
        for node in network.graph.nodes:
            if node.op == "placeholder":
                names[node] = "photograph"
            elif node.op == "output":
                (outputs,) = node.args
                return [names[each] for each in (outputs if isinstance(outputs, tuple) else (outputs,))]
            else:
                names[node] = self._node(network, node, [names[arg] for arg in node.args if isinstance(arg, fx.Node)])
        raise AssertionError("a traced module returns something")

    def _node(self, network: fx.GraphModule, node: fx.Node, inputs: list[str]) -> str:
        layer = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind: Any = node.target if layer is None else type(layer)
        if kind not in LAYERS:
            known = ", ".join(sorted(kind.__name__ for kind in LAYERS))
            raise SettingsError(f"backbone: expected layers of {known}; found {kind} at {node.name}")
        call = LAYERS[kind](self, layer, str(node.target), inputs)
        self._graph.lines.append(f"{node.name} = {call}")
        return node.name

    def conv(self, layer: nn.Conv2d, name: str, inputs: list[str]) -> str:
        padding = [int(size) for size in layer.padding]
        attributes = {
            "strides": list(layer.stride),
            "pads": [*padding, *padding],
            "dilations": list(layer.dilation),
            "group": layer.groups,
        }
        listed = ", ".join(f"{key} = {value}" for key, value in attributes.items())
        for part, _ in layer.named_parameters():
            weight = f"{CNN}{name}.{part}"
            inputs.append(weight.replace(".", "_"))
            self._graph.lines.append(f"{inputs[-1]} = Cast <to = 1> ({self._graph.outside(weight)})")
        return f"Conv <{listed}> ({', '.join(inputs)})"

    def pad(self, inputs: list[str], layer: nn.ZeroPad2d) -> str:
        left, right, top, bottom = layer.padding
        name = f"pads_{left}_{right}_{top}_{bottom}"
        pads = self._graph.constant(name, np.array([0, 0, top, left, 0, 0, bottom, right]))
        return f"Pad ({inputs[0]}, {pads})"

    def clip(self, inputs: list[str], most: float) -> str:
        low = self._graph.constant("none", np.array(0, np.float32))
        high = self._graph.constant("most", np.array(most, np.float32))
        return f"Clip ({inputs[0]}, {low}, {high})"


# ONNX calls by torch layer or function, from (translation, layer, its name, names of inputs).
LAYERS: dict[Any, Callable[[_Translation, Any, str, list[str]], str]] = {
    nn.Conv2d: lambda to, layer, name, x: to.conv(layer, name, x),
    nn.ReLU6: lambda to, layer, name, x: to.clip(x, 6),
    F.relu6: lambda to, layer, name, x: to.clip(x, 6),
    nn.ZeroPad2d: lambda to, layer, name, x: to.pad(x, layer),
    nn.ReLU: lambda to, layer, name, x: f"Relu ({x[0]})",
    nn.MaxPool2d: lambda to, layer, name, x: (
        f"MaxPool <kernel_shape = [{layer.kernel_size}, {layer.kernel_size}],"
        f" strides = [{layer.stride}, {layer.stride}], pads = {[layer.padding] * 4}> ({x[0]})"
    ),
    operator.add: lambda to, layer, name, x: f"Add ({x[0]}, {x[1]})",
    nn.AdaptiveAvgPool2d: lambda to, layer, name, x: f"GlobalAveragePool ({x[0]})",
    F.adaptive_avg_pool2d: lambda to, layer, name, x: f"GlobalAveragePool ({x[0]})",
    torch.flatten: lambda to, layer, name, x: f"Flatten ({x[0]})",
    nn.Dropout: lambda to, layer, name, x: f"Identity ({x[0]})",
    nn.Identity: lambda to, layer, name, x: f"Identity ({x[0]})",
}


# the decoder


def _begin(
    model: Captioner, weights: Mapping[str, Array], extents: Mapping[str, Extent], precision: Precision
) -> bytes:
    """The graph of features (B, F) -> state (B, S) before the first word."""
    graph = Graph(precision, weights)
    biased(graph, "image", graph.linear("features", "image.weight"), weights.get("image.bias"))
    match model.inject:
        case "chapter":
            _zeros(graph, "features", model.state_width)
            graph.lines.append("state = Concat <axis = 1> (image, zeros)")
        case "init":
            graph.lines.append("state = Tanh (image)")
        case "pre":
            _zeros(graph, "features", model.hidden_size)
            after = advance(graph, model.cell, "image", ["zeros"] * len(state_parts(model.cell)), None)
            graph.lines.append(f"state = Concat <axis = 1> ({', '.join(after)})")
    seen = weights["image.weight"].shape[1]
    return graph.model(f"begin (float[B,{seen}] features) => (float[B,{model.state_size}] state)", extents)


def _step(model: Captioner, weights: Mapping[str, Array], extents: Mapping[str, Extent], precision: Precision) -> bytes:
    """The graph of tokens (B,), state (B, S) -> log_probabilities (B, V), state_after (B, S)."""
    graph = Graph(precision, weights)
    term = model.state_size - model.state_width  # numbers of V X, chapter only
    parts = ["term", *state_parts(model.cell)] if term else state_parts(model.cell)
    sizes = graph.constant(
        "sizes", np.array([term, *[model.hidden_size] * len(state_parts(model.cell))][-len(parts) :])
    )
    output = "output.weight" if "output.weight" in weights else "embedding.weight"
    product = graph.linear("h_next", output)  # first, so that a tied matrix is there in float32 as well
    graph.lines += [
        f"rows = Gather ({graph.outside('embedding.weight')}, tokens)",
        "word = Cast <to = 1> (rows)",
        f"{', '.join(parts)} = Split <axis = 1> (state, {sizes})",
    ]
    after = advance(graph, model.cell, "word", state_parts(model.cell), "term" if term else None)
    if term:
        _zeros(graph, "state", term)
    biased(graph, "logits", product, weights["output.bias"])
    graph.lines += [
        "log_probabilities = LogSoftmax <axis = 1> (logits)",
        f"state_after = Concat <axis = 1> ({', '.join(['zeros', *after] if term else after)})",
    ]
    words, size = len(weights["output.bias"]), model.state_size
    signature = (
        f"step (int64[B] tokens, float[B,{size}] state)"
        f" => (float[B,{words}] log_probabilities, float[B,{size}] state_after)"
    )
    return graph.model(signature, extents)


def advance(graph: Graph, cell: Cell, x: str, parts: list[str], term: str | None = None) -> list[str]:
    """Write one step of a captioner's cell after the input `x`; return the names of [c] h.

    `term` is V X, if it is still to be added.
    """
    layer, after = "recurrent.layers.0", [f"{part}_next" for part in state_parts(cell)]
    read = biased(graph, "read", graph.linear(x, f"{layer}.weight_ih"), graph.weights[f"{layer}.bias"])
    if term:
        graph.lines.append(f"read_seen = Add ({read}, {term})")
        read = "read_seen"
    graph.lines += [
        hidden_product(graph, cell, layer, parts[-1]),
        f"{', '.join(after)} = {step(graph, cell, layer, read, 'hidden_gates', parts)}",
    ]
    return after


def biased(graph: Graph, name: str, product: str, bias: Array | None) -> str:
    """Write a product, with a bias added if there is one; return `name`."""
    if bias is None:
        graph.lines.append(f"{name} = {product}")
        return name
    graph.constant(f"{name}_bias", bias.astype(np.float32))
    graph.lines += [f"{name}_product = {product}", f"{name} = Add ({name}_product, {name}_bias)"]
    return name


def _zeros(graph: Graph, like: str, size: int) -> None:
    """Write `zeros` (B, size), with the rows of `like`."""
    graph.constant("zeros_size", np.array([size]))
    graph.lines += [
        f"zeros_count = Shape <start = 0, end = 1> ({like})",
        "zeros_shape = Concat <axis = 0> (zeros_count, zeros_size)",
        "zeros = ConstantOfShape <value = float[1] {0.0}> (zeros_shape)",
    ]
