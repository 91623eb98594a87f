"""One step of every cell in plain torch, for whoever stands between a layer's products and its state.

`Recurrent` reads whole sequences; the captioner adds its photograph to a step's pre-activations, and an eight-bit
reader makes its products on a grid: both take the equations from here.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from app.models.recurrent import Layer, LayerState


class Squash(NamedTuple):
    """How the two functions that squash a sum are computed."""

    sigmoid: Callable[[Tensor], Tensor]
    tanh: Callable[[Tensor], Tensor]


TORCHS: Final = Squash(torch.sigmoid, torch.tanh)


def step(layer: Layer, read: Tensor, recalled: Tensor, state: LayerState, by: Squash = TORCHS) -> LayerState:
    """The state after a step of a layer: the equations of `Layer`.

    `read` is W_ih x_t + b, `recalled` W_hh h_{t-1} with `recalled_bias`, each (B, G * H); the state before is (h,) or
    (h, c), each (B, H).
    """
    match layer.cell:
        case "rnn":
            return (by.tanh(read + recalled),)
        case "gru":
            return (_gru(read, recalled, state[0], by),)
        case "lstm" | "peephole":
            return _lstm(read + recalled, state[1], layer.peephole, by)
        case "cifg" | "peephole-cifg":
            return _cifg(read + recalled, state[1], layer.peephole, by)


def recalled_bias(layer: Layer) -> Tensor | None:
    """What stands beside W_hh h_{t-1}, (G * H,): the GRU's bias_hn at its new state; None of the other cells."""
    return None if layer.bias_hn is None else F.pad(layer.bias_hn, (2 * layer.hidden_size, 0))


def _gru(read: Tensor, recalled: Tensor, h: Tensor, by: Squash) -> Tensor:
    (r, z, n), (r_recalled, z_recalled, n_recalled) = read.chunk(3, -1), recalled.chunk(3, -1)
    new = by.tanh(n + by.sigmoid(r + r_recalled) * n_recalled)
    return new + by.sigmoid(z + z_recalled) * (h - new)


def _lstm(gates: Tensor, c: Tensor, peephole: Tensor | None, by: Squash) -> LayerState:
    i, f, g, o = gates.chunk(4, -1)
    if peephole is not None:
        i, f = i + peephole[0] * c, f + peephole[1] * c
    return _opened(o, by.sigmoid(f) * c + by.sigmoid(i) * by.tanh(g), peephole, by)


def _cifg(gates: Tensor, c: Tensor, peephole: Tensor | None, by: Squash) -> LayerState:
    i, g, o = gates.chunk(3, -1)
    if peephole is not None:
        i = i + peephole[0] * c
    return _opened(o, c + by.sigmoid(i) * (by.tanh(g) - c), peephole, by)


def _opened(o: Tensor, c: Tensor, peephole: Tensor | None, by: Squash) -> LayerState:
    """(h, c) behind the output gate, which sees the new c."""
    if peephole is not None:
        o = o + peephole[-1] * c
    return by.sigmoid(o) * by.tanh(c), c
