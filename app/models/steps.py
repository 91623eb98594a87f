"""One step of every cell in plain torch, from the gates' pre-activations to the state.

`Recurrent` processes whole sequences. The captioner adds image features to the pre-activations and the 8-bit digit
reader quantizes the products: both take the equations from here.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from app.models.recurrent import Layer, LayerState


def step(layer: Layer, input_gates: Tensor, hidden_gates: Tensor, state: LayerState) -> LayerState:
    """Return the state after one step of a layer, by the equations of `Layer`.

    `input_gates` is W_ih x_t + b and `hidden_gates` W_hh h_{t-1} + `hidden_bias`, each (B, G * H). The state is (h,)
    or (h, c), each (B, H).
    """
    match layer.cell:
        case "rnn":
            return (torch.tanh(input_gates + hidden_gates),)
        case "gru":
            (r, z, n), (r_hidden, z_hidden, n_hidden) = input_gates.chunk(3, -1), hidden_gates.chunk(3, -1)
            new = torch.tanh(n + torch.sigmoid(r + r_hidden) * n_hidden)
            return (new + torch.sigmoid(z + z_hidden) * (state[0] - new),)
        case "lstm" | "peephole":
            return _lstm(input_gates + hidden_gates, state[1], layer.peephole)
        case "cifg" | "peephole-cifg":
            return _cifg(input_gates + hidden_gates, state[1], layer.peephole)


def hidden_bias(layer: Layer) -> Tensor | None:
    """Return the bias of W_hh h_{t-1}, (G * H,): zeros and the GRU's bias_hn; None for the other cells."""
    return None if layer.bias_hn is None else F.pad(layer.bias_hn, (2 * layer.hidden_size, 0))


def _lstm(gates: Tensor, c: Tensor, peephole: Tensor | None) -> LayerState:
    i, f, g, o = gates.chunk(4, -1)
    if peephole is not None:
        i, f = i + peephole[0] * c, f + peephole[1] * c
    return _output(o, torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g), peephole)


def _cifg(gates: Tensor, c: Tensor, peephole: Tensor | None) -> LayerState:
    i, g, o = gates.chunk(3, -1)
    if peephole is not None:
        i = i + peephole[0] * c
    return _output(o, c + torch.sigmoid(i) * (torch.tanh(g) - c), peephole)


def _output(o: Tensor, c: Tensor, peephole: Tensor | None) -> LayerState:
    """Return (h, c) after the output gate, whose peephole sees the new c."""
    if peephole is not None:
        o = o + peephole[-1] * c
    return torch.sigmoid(o) * torch.tanh(c), c
