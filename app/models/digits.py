"""Classifiers of handwritten digits made of recurrent layers alone, without convolution.

With `eight_bit` set, a reader computes as the served int8 graph: weights and the inputs of products are rounded to 8
bits. This is the reference that the graph is tested against; it is slow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.recurrent import STATE_VECTORS, Cell, Layer, Recurrent
from app.models.steps import hidden_bias, step
from app.models.torch_weights import accept_torch_weights

SIDE = 28  # pixels of an image
PIXEL = 1 / 255  # quantization step of pixels
HIDDEN = 1 / 127  # quantization step of hidden states, which lie between -1 and 1


class RowReader(nn.Module):
    """The chapter's classifier: 28 steps of 28 pixels, a bidirectional LSTM, a linear layer on the last step's output.

    At the last step the backward direction has read one row only, as in the chapter. Other cells than the LSTM are
    supported.
    """

    def __init__(
        self, *, hidden_size: int = 256, cell: Cell = "lstm", outputs: int = 10, forget_bias: float = 1.0
    ) -> None:
        super().__init__()
        self.eight_bit = False
        self.recurrent = bidirectional(SIDE, hidden_size, cell, forget_bias)
        self.output = nn.Linear(2 * hidden_size, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) in 0..1 -> logits (B, outputs)."""
        logits: Tensor = self.output(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, 28, 28) in 0..1 -> inputs of the linear layer (B, 2H)."""
        rows = images.transpose(0, 1)  # (B, 28, 28) -> (28, B, 28)
        hidden = read(self.recurrent, rows, PIXEL if self.eight_bit else None)  # (28, B, 28) -> (28, B, 2H)
        return hidden[-1]


class ReNet(nn.Module):
    """Sweeps of bidirectional recurrent layers over the plane (Visin et al. 2015, arXiv 1505.00393).

    A layer (p, H) cuts its plane into patches of p x p, reads each row of patches in both directions, then each column
    of the result. Every output of a layer depends on the whole image and on its position. The outputs of the last
    layer at all positions go through one linear layer.
    """

    def __init__(
        self, layers: Sequence[tuple[int, int]], *, cell: Cell = "gru", outputs: int = 11, dropout: float = 0.0
    ) -> None:
        """`layers`: (side of a patch, hidden units a direction) of each; `dropout` before the linear layer.

        Raise ValueError if patches do not fill the plane.
        """
        super().__init__()
        self.eight_bit = False
        self.layers = [(patch, hidden) for patch, hidden in layers]
        self.across, self.down = nn.ModuleList(), nn.ModuleList()
        side, size = SIDE, 1
        for patch, hidden in layers:
            if side % patch:
                raise ValueError(f"patches: expected sides that divide {side}, found {patch}")
            side //= patch
            self.across.append(bidirectional(size * patch**2, hidden, cell))
            self.down.append(bidirectional(2 * hidden, hidden, cell))
            size = 2 * hidden
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(side * side * size, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) in 0..1 -> logits (B, outputs)."""
        logits: Tensor = self.output(self.dropout(self.features(images)))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, 28, 28) in 0..1 -> inputs of the linear layer (B, H * W * 2H): all positions, row by row."""
        plane = images.permute(1, 2, 0).unsqueeze(-1)  # (28, 28, B, 1)
        for (patch, _), across, down in zip(self.layers, self.across, self.down, strict=True):
            plane = self._sweep(across, patches(plane, patch))  # (H, W, B, C) -> (W, H, B, C) -> (W, H, B, 2H)
            plane = self._sweep(down, plane.transpose(0, 1))  # -> (H, W, B, 2H)
        return plane.permute(2, 0, 1, 3).flatten(1)

    def _sweep(self, recurrent: nn.Module, plane: Tensor) -> Tensor:
        """Read (T, N, B, C) along T, each of the N * B lines by itself -> (T, N, B, 2H)."""
        grid = PIXEL if recurrent is self.across[0] else HIDDEN
        outputs = read(recurrent, plane.flatten(1, 2), grid if self.eight_bit else None)
        return torch.unflatten(outputs, 1, plane.shape[1:3])


def patches(plane: Tensor, side: int) -> Tensor:
    """(H, W, B, C) -> (W / side, H / side, B, side * side * C): the steps of a sweep across, patch by patch."""
    height, width, batch, size = plane.shape
    cut = plane.reshape(height // side, side, width // side, side, batch, size)
    return cut.permute(2, 0, 4, 1, 3, 5).reshape(width // side, height // side, batch, side * side * size)


def bidirectional(input_size: int, hidden_size: int, cell: Cell, forget_bias: float = 0.0) -> Recurrent:
    """Return one bidirectional layer, its weights initialised as by torch, its other biases 0."""
    made = Recurrent(input_size, [hidden_size], cell=cell, bidirectional=True)
    made.reset(hidden_size**-0.5, forget_bias)
    accept_torch_weights(made)
    return made


def read(recurrent: nn.Module, inputs: Tensor, grid: float | None) -> Tensor:
    """(T, N, I) -> (T, N, 2H); in 8 bits with a `grid`, the quantization step of `inputs`."""
    assert isinstance(recurrent, Recurrent)
    if grid is None:
        outputs: Tensor = recurrent(inputs)[0]
        return outputs
    (forward,), (backward,) = recurrent.layers, recurrent.reversed_layers
    reversed_ = _read_eight_bit(backward, inputs.flip(0), grid)
    return torch.cat([_read_eight_bit(forward, inputs, grid), reversed_.flip(0)], -1)


def _read_eight_bit(layer: nn.Module, inputs: Tensor, grid: float) -> Tensor:
    """One direction, step by step: (T, N, I) -> (T, N, H)."""
    assert isinstance(layer, Layer)
    inner, outputs = hidden_bias(layer), list[Tensor]()
    state = (inputs.new_zeros(inputs.shape[1], layer.hidden_size),) * STATE_VECTORS[layer.cell]
    for input_gates in _product(inputs, grid, layer.weight_ih, layer.bias):  # (T, N, I) -> (T, N, G)
        state = step(layer, input_gates, _product(state[0], HIDDEN, layer.weight_hh, inner), state)
        outputs.append(state[0])
    return torch.stack(outputs)


def _product(inputs: Tensor, grid: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., I) times the transpose of (O, I), both as 8-bit integers, plus a bias -> (..., O), rounded as by the graph.

    The sums are whole numbers below 2^24, which float32 holds exactly.
    """
    least, most = (0, 255) if grid == PIXEL else (-128, 127)
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    sums = F.linear((inputs / grid).round().clamp(least, most), (weight / scale[:, None]).round())
    product = sums * (scale * grid)
    return product if bias is None else product + bias
