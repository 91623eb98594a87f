"""Recurrent layers, stacked (Hochreiter & Schmidhuber 1997; Gers et al. 2000 for the forget gate)."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LayerState: TypeAlias = tuple[Tensor, Tensor]
"""(h, c) of one LSTM layer, each (B, H)."""


def locked_dropout(inputs: Tensor, probability: float, *, training: bool) -> Tensor:
    """Dropout with one mask for all time steps of `inputs` (T, B, H) (Gal & Ghahramani 2016)."""
    if not training or probability == 0:
        return inputs
    keep = inputs.new_ones(1, *inputs.shape[1:])
    return inputs * F.dropout(keep, probability)


class LSTMLayer(nn.Module):
    """One LSTM layer on torch's own kernel.

    i, f, g, o = split(W_ih x_t + W_hh h_{t-1} + b)   (gate order and row blocks as in torch.nn.LSTM)
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g),   h_t = sigmoid(o) * tanh(c_t)

    One bias, not torch's two, since their sum is all that counts. `weight_drop` drops entries of W_hh, one mask
    for the whole window (Merity et al. 2018, arXiv 1708.02182).
    """

    def __init__(self, input_size: int, hidden_size: int, *, weight_drop: float = 0.0) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.weight_drop = weight_drop
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))
        self.register_buffer("no_bias", torch.zeros(4 * hidden_size), persistent=False)

    def reset(self, initial_range: float, forget_bias: float) -> None:
        """Weights uniform in ±initial_range; biases 0, `forget_bias` at the forget gate (Jozefowicz et al. 2015)."""
        nn.init.uniform_(self.weight_ih, -initial_range, initial_range)
        nn.init.uniform_(self.weight_hh, -initial_range, initial_range)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.bias[self.hidden_size : 2 * self.hidden_size] = forget_bias

    def forward(self, inputs: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """(T, B, I) and the state before -> (T, B, H) and the state after."""
        recurrent = F.dropout(self.weight_hh, self.weight_drop, training=self.training)
        weights = [self.weight_ih, recurrent, self.bias, self.get_buffer("no_bias")]
        before = (state[0].unsqueeze(0), state[1].unsqueeze(0))
        outputs, h, c = torch.lstm(inputs, before, weights, True, 1, 0.0, self.training, False, False)
        return outputs, (h.squeeze(0), c.squeeze(0))


class Recurrent(nn.Module):
    """Stacked LSTM layers, `hidden_sizes[k]` units in layer k, with dropout between them.

    `locked` keeps one dropout mask for all steps of a window; otherwise every step draws its own.
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        *,
        dropout: float = 0.0,
        locked: bool = True,
        weight_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden_sizes:
            raise ValueError("hidden_sizes: expected at least one layer, found none")
        self.hidden_sizes = tuple(hidden_sizes)
        self.dropout = dropout
        self.locked = locked
        input_sizes = [input_size, *hidden_sizes[:-1]]
        self.layers = nn.ModuleList(
            LSTMLayer(size_in, size_out, weight_drop=weight_drop)
            for size_in, size_out in zip(input_sizes, hidden_sizes, strict=True)
        )

    def reset(self, initial_range: float, forget_bias: float) -> None:
        """Initialise every layer; see `LSTMLayer.reset`."""
        for layer in self.layers:
            layer.reset(initial_range, forget_bias)  # type: ignore[operator]

    def initial_state(self, batch_size: int) -> list[LayerState]:
        """Zero states, one (h, c) a layer."""
        weight = next(self.parameters())
        return [(weight.new_zeros(batch_size, size), weight.new_zeros(batch_size, size)) for size in self.hidden_sizes]

    def forward(self, inputs: Tensor, state: Sequence[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """(T, B, I) and the states before -> (T, B, H) of the last layer, without dropout, and the states after."""
        after = []
        for index, (layer, before) in enumerate(zip(self.layers, state, strict=True)):
            if index:
                inputs = self._drop(inputs)
            inputs, layer_after = layer(inputs, before)
            after.append(layer_after)
        return inputs, after

    def _drop(self, outputs: Tensor) -> Tensor:
        if self.locked:
            return locked_dropout(outputs, self.dropout, training=self.training)
        return F.dropout(outputs, self.dropout, training=self.training)
