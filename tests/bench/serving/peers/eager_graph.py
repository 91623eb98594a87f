"""An ONNX graph of convolutions in eager torch, node by node."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

Attributes: TypeAlias = Mapping[str, Any]
Values: TypeAlias = list[Any]


def _sliced(x: Values, _: Attributes) -> Tensor:
    """Slice without `axes` or `steps` left out."""
    data, starts, ends, axes, steps = x
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(*(each.tolist() for each in (starts, ends, axes, steps)), strict=True):
        index[axis] = slice(start, min(end, data.shape[axis]), step)
    return data[tuple(index)]  # type: ignore[no-any-return]


OPERATORS: Final[dict[str, Callable[[Values, Attributes], Any]]] = {
    "Add": lambda x, a: x[0] + x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "Sigmoid": lambda x, a: torch.sigmoid(x[0]),
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Constant": lambda x, a: torch.from_numpy(numpy_helper.to_array(a["value"]).copy()),
    "Conv": lambda x, a: F.conv2d(x[0], x[1], x[2], a["strides"], a["pads"][:2], 1, a["group"]),
    "MaxPool": lambda x, a: F.max_pool2d(x[0], a["kernel_shape"], a["strides"], a["pads"][0]),
    "Reshape": lambda x, a: x[0].reshape(x[1].tolist()),
    "Resize": lambda x, a: F.interpolate(x[0], scale_factor=x[2].tolist()[2:]),
    "Slice": _sliced,
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
}


class EagerGraph:
    """The graph's nodes as torch calls, weights in channels-last layout; of OPERATORS alone."""

    def __init__(self, graph: bytes) -> None:
        model = onnx.load_from_string(graph).graph
        self._nodes = [
            (OPERATORS[node.op_type], [*node.input], node.output[0], self._attributes(node)) for node in model.node
        ]
        self._input, self._output = model.input[0].name, model.output[0].name
        self._weights: dict[str, Any] = {"": None}
        for each in model.initializer:
            value = torch.from_numpy(numpy_helper.to_array(each).copy())
            self._weights[each.name] = value.to(memory_format=torch.channels_last) if value.ndim == 4 else value

    @staticmethod
    def _attributes(node: onnx.NodeProto) -> Attributes:
        return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}

    @torch.inference_mode()
    def __call__(self, value: Tensor) -> Tensor:
        """Run the graph of one input and one output."""
        values = self._weights | {self._input: value.to(memory_format=torch.channels_last)}
        for operator, inputs, output, attributes in self._nodes:
            values[output] = operator([values[name] for name in inputs], attributes)
        result: Tensor = values[self._output]
        return result
