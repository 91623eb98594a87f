"""A step written out is a step of `Recurrent`, of every cell."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.models.recurrent import CELLS, Cell, Layer, Recurrent
from app.models.steps import hidden_bias, step
from app.models.torch_weights import accept_torch_weights

STEPS, BATCH, SIZE_IN, SIZE = 6, 3, 5, 4


@pytest.mark.parametrize("cell", CELLS)
def test_steps_in_turn_are_a_sequence_read_at_once(cell: Cell) -> None:
    layer = Layer(SIZE_IN, SIZE, cell=cell).double()
    for parameter in layer.parameters():  # biases too, so that each matters
        nn.init.uniform_(parameter, -0.8, 0.8)
    inputs = torch.randn(STEPS, BATCH, SIZE_IN, dtype=torch.float64)
    before = tuple(
        torch.randn_like(part) for part in Recurrent(SIZE_IN, [SIZE], cell=cell).double().initial_state(BATCH)[0]
    )
    expected, after = layer(inputs, before)
    state, outputs = before, []
    for read in F.linear(inputs, layer.weight_ih, layer.bias):
        state = step(layer, read, F.linear(state[0], layer.weight_hh, hidden_bias(layer)), state)
        outputs.append(state[0])
    torch.testing.assert_close(torch.stack(outputs), expected)
    torch.testing.assert_close(state, after)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "kernel"), [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_weights_of_torchs_own_modules_are_read(
    cell: Cell, kernel: type[nn.RNN | nn.LSTM | nn.GRU], bidirectional: bool, layers: int
) -> None:
    ours = Recurrent(SIZE_IN, [SIZE] * layers, cell=cell, bidirectional=bidirectional)
    theirs = kernel(SIZE_IN, SIZE, layers, bidirectional=bidirectional)
    accept_torch_weights(ours)
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(STEPS, BATCH, SIZE_IN)
    torch.testing.assert_close(ours(inputs)[0], theirs(inputs)[0])


def test_our_own_weights_are_read_as_ever_and_others_are_rejected() -> None:
    module, other = Recurrent(SIZE_IN, [SIZE], cell="gru"), Recurrent(SIZE_IN, [SIZE], cell="gru")
    for each in (module, other):
        accept_torch_weights(each)
        each.reset(0.5, forget_bias=0)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other.state_dict(), module.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(nn.GRU(SIZE_IN, SIZE + 1).state_dict())
    with pytest.raises(RuntimeError, match="weight_ih_l1"):
        other.load_state_dict(nn.GRU(SIZE_IN, SIZE, 2).state_dict())
