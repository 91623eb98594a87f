"""One step of every cell in plain torch, from the gates' pre-activations to the state.

`Recurrent` processes whole sequences. The captioner adds image features to the pre-activations and the 8-bit digit
reader quantizes the products: both take the equations from here.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from app.models.recurrent import Layer, LayerState


class Activations(NamedTuple):
    """Implementations of the two activation functions."""

    sigmoid: Callable[[Tensor], Tensor]
    tanh: Callable[[Tensor], Tensor]


TORCH_ACTIVATIONS: Final = Activations(torch.sigmoid, torch.tanh)


def step(
    layer: Layer,
    input_gates: Tensor,
    hidden_gates: Tensor,
    state: LayerState,
    activations: Activations = TORCH_ACTIVATIONS,
) -> LayerState:
    """Return the state after one step of a layer, by the equations of `Layer`.

    `input_gates` is W_ih x_t + b and `hidden_gates` W_hh h_{t-1} + `hidden_bias`, each (B, G * H). The state is (h,)
    or (h, c), each (B, H).
    """
    match layer.cell:
        case "rnn":
            return (activations.tanh(input_gates + hidden_gates),)
        case "gru":
            return (_gru(input_gates, hidden_gates, state[0], activations),)
        case "lstm" | "peephole":
            return _lstm(input_gates + hidden_gates, state[1], layer.peephole, activations)
        case "cifg" | "peephole-cifg":
            return _cifg(input_gates + hidden_gates, state[1], layer.peephole, activations)


def hidden_bias(layer: Layer) -> Tensor | None:
    """Return the bias of W_hh h_{t-1}, (G * H,): zeros and the GRU's bias_hn; None for the other cells."""
    return None if layer.bias_hn is None else F.pad(layer.bias_hn, (2 * layer.hidden_size, 0))


def _gru(input_gates: Tensor, hidden_gates: Tensor, h: Tensor, activations: Activations) -> Tensor:
    (r, z, n), (r_hidden, z_hidden, n_hidden) = input_gates.chunk(3, -1), hidden_gates.chunk(3, -1)
    new = activations.tanh(n + activations.sigmoid(r + r_hidden) * n_hidden)
    return new + activations.sigmoid(z + z_hidden) * (h - new)


def _lstm(gates: Tensor, c: Tensor, peephole: Tensor | None, activations: Activations) -> LayerState:
    i, f, g, o = gates.chunk(4, -1)
    if peephole is not None:
        i, f = i + peephole[0] * c, f + peephole[1] * c
    return _output(o, activations.sigmoid(f) * c + activations.sigmoid(i) * activations.tanh(g), peephole, activations)


def _cifg(gates: Tensor, c: Tensor, peephole: Tensor | None, activations: Activations) -> LayerState:
    i, g, o = gates.chunk(3, -1)
    if peephole is not None:
        i = i + peephole[0] * c
    return _output(o, c + activations.sigmoid(i) * (activations.tanh(g) - c), peephole, activations)


def _output(o: Tensor, c: Tensor, peephole: Tensor | None, activations: Activations) -> LayerState:
    """Return (h, c) after the output gate, whose peephole sees the new c."""
    if peephole is not None:
        o = o + peephole[-1] * c
    return activations.sigmoid(o) * activations.tanh(c), c
