"""The emulation of ONNX Runtime's kernels, held against them."""

from collections.abc import Callable

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from app.models.runtime_rounding import sigmoid, tanh

GRAPH = """<ir_version: 10, opset_import: ["": 21]> g (float[N,96] x) => (float[N,96] y) {{ y = {operator} (x) }}"""


@pytest.mark.parametrize(
    ("operator", "function", "exact"), [("Sigmoid", sigmoid, torch.sigmoid), ("Tanh", tanh, torch.tanh)]
)
def test_a_function_is_the_kernels(
    operator: str, function: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor]
) -> None:
    x = np.random.default_rng(1).normal(0, 3, (400, 96)).astype(np.float32)
    x[0, :8] = [0, -0.0, 1e-30, -1e-30, 9, -9, 50, -50]
    kernel = ort.InferenceSession(onnx.parser.parse_model(GRAPH.format(operator=operator)).SerializeToString())
    (expected,) = kernel.run(None, {"x": x})
    found = function(torch.from_numpy(x)).numpy()
    # A processor without fused multiplication and addition rounds once more.
    assert np.abs(found - expected).max() < 3e-7
    assert np.mean(found == expected) > 0.5
    assert np.abs(found - exact(torch.from_numpy(x)).numpy()).max() < 5e-7
