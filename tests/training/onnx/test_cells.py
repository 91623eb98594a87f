"""A cell's step in ONNX, ONNX's own operator and the torch module are one and the same."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from app.models.recurrent import CELLS, GATES, Cell, Layer, Recurrent
from app.models.steps import step as torch_step
from app.runtime.onnx_session import session
from app.runtime.recurrent_engine import Floats
from training.onnx.cells import operator, state_parts, step
from training.onnx.graph import Graph

STEPS, BATCH, SIZE_IN, SIZE = 9, 3, 5, 6


def recurrent(cell: Cell, *, bidirectional: bool = False) -> Recurrent:
    made = Recurrent(SIZE_IN, [SIZE], cell=cell, bidirectional=bidirectional)
    for parameter in made.parameters():  # biases and peepholes too, so that each matters
        nn.init.uniform_(parameter, -0.8, 0.8)
    return made


def graph(module: Recurrent) -> Graph:
    return Graph("fp32", {name: value.numpy() for name, value in module.state_dict().items()})


def run(path: Path, content: bytes, **feed: npt.NDArray[np.float32]) -> list[Floats]:
    path.write_bytes(content)
    return list(session(path, 1).run(None, feed))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_onnx_s_operator_is_the_torch_module(cell: Cell, bidirectional: bool, tmp_path: Path) -> None:
    module, inputs = recurrent(cell, bidirectional=bidirectional), torch.randn(STEPS, BATCH, SIZE_IN)
    text = graph(module)
    layers = ["layers.0", "reversed_layers.0"] if bidirectional else ["layers.0"]
    text.lines.append(f"y = {operator(text, cell, layers, 'x')}")
    found = run(
        tmp_path / "g.onnx", text.model(f"g (float[T,B,{SIZE_IN}] x) => (float[T,D,B,H] y)", {}), x=inputs.numpy()
    )
    expected = module(inputs)[0].detach().unflatten(-1, (len(layers), SIZE)).transpose(1, 2)  # (T, D, B, H)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_is_a_step_of_the_torch_module(cell: Cell, tmp_path: Path) -> None:
    module, parts = recurrent(cell), state_parts(cell)
    (layer,) = module.layers
    assert isinstance(layer, Layer)
    input_gates, hidden_gates = torch.randn(2, BATCH, GATES[cell] * SIZE)
    state = [torch.randn(BATCH, SIZE) for _ in parts]
    text = graph(module)
    text.lines.append(
        f"{', '.join(f'{part}_next' for part in parts)} = {step(text, cell, 'layers.0', 'a', 'b', parts)}"
    )
    taken = ", ".join(
        f"float[B,{size}] {name}"
        for name, size in [("a", len(input_gates[0])), ("b", len(input_gates[0])), *((part, SIZE) for part in parts)]
    )
    given = ", ".join(f"float[B,{SIZE}] {part}_next" for part in parts)
    feed = dict(zip(("a", "b", *parts), (each.numpy() for each in (input_gates, hidden_gates, *state)), strict=True))
    found = run(tmp_path / "g.onnx", text.model(f"g ({taken}) => ({given})", {}), **feed)
    expected = torch_step(layer, input_gates, hidden_gates, tuple(reversed(state)))
    for value, part in zip(found, reversed(expected), strict=True):
        np.testing.assert_allclose(value, part.detach(), atol=1e-6)
