"""Readers of handwritten digits: recurrence does all the reading, there is no convolution.

A reader whose `eight_bit` is set computes as the served int8 graph does: weights, and all that enters a product, stand
on a grid of 8 bits. It is for evaluation, and the reference that the graph is held against; it is slow.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Cell: TypeAlias = Literal["lstm", "gru"]
Layer: TypeAlias = nn.LSTM | nn.GRU

SIDE = 28  # pixels of an image
PIXEL = 1 / 255  # the step of the grid on which eight-bit pixels stand
HIDDEN = 1 / 127  # and of that of hidden states, which lie between -1 and 1
_CELLS: dict[Cell, type[Layer]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RowReader(nn.Module):
    """The chapter's classifier: 28 steps of 28 pixels, a bidirectional LSTM, a linear layer on the last step's output.

    At the last step the backward direction has read one row only; the chapter has it so.
    """

    def __init__(self, *, hidden_size: int = 256, outputs: int = 10, forget_bias: float = 1.0) -> None:
        super().__init__()
        self.eight_bit = False
        self.lstm = nn.LSTM(SIDE, hidden_size, bidirectional=True)
        self.output = nn.Linear(2 * hidden_size, outputs)
        for name, bias in self.lstm.named_parameters():
            if name.startswith("bias"):  # torch adds two biases: one of them holds the forget gate's
                nn.init.zeros_(bias)
            if name.startswith("bias_ih"):
                nn.init.constant_(bias[hidden_size : 2 * hidden_size], forget_bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) in 0..1 -> logits (B, outputs)."""
        logits: Tensor = self.output(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, 28, 28) in 0..1 -> what the linear layer reads, (B, 2H)."""
        rows = images.transpose(0, 1)  # (B, 28, 28) -> (28, B, 28)
        hidden = _read_eight_bit(self.lstm, rows, PIXEL) if self.eight_bit else _read(self.lstm, rows)  # (28, B, 2H)
        return hidden[-1]


class ReNet(nn.Module):
    """Sweeps of bidirectional recurrent layers over the plane (Visin et al. 2015, arXiv 1505.00393).

    A layer (p, H) cuts its plane into patches of p x p, reads each row of patches from both ends, then each column of
    what came out. So every number after one layer has seen the whole image, and its place. All that the last layer
    says of every place goes through one linear layer.
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
            self.across.append(_CELLS[cell](size * patch**2, hidden, bidirectional=True))
            self.down.append(_CELLS[cell](2 * hidden, hidden, bidirectional=True))
            size = 2 * hidden
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(side * side * size, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 28, 28) in 0..1 -> logits (B, outputs)."""
        logits: Tensor = self.output(self.dropout(self.features(images)))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, 28, 28) in 0..1 -> what the linear layer reads, (B, H * W * 2H): all places, row by row."""
        plane = images.permute(1, 2, 0).unsqueeze(-1)  # (28, 28, B, 1)
        for (patch, _), across, down in zip(self.layers, self.across, self.down, strict=True):
            plane = self._sweep(across, patches(plane, patch))  # (H, W, B, C) -> (W, H, B, C) -> (W, H, B, 2H)
            plane = self._sweep(down, plane.transpose(0, 1))  # -> (H, W, B, 2H)
        return plane.permute(2, 0, 1, 3).flatten(1)

    def _sweep(self, layer: nn.Module, plane: Tensor) -> Tensor:
        """Read (T, N, B, C) along T, each of the N * B lines by itself -> (T, N, B, 2H)."""
        lines = plane.flatten(1, 2)
        if self.eight_bit:
            outputs = _read_eight_bit(layer, lines, PIXEL if layer is self.across[0] else HIDDEN)  # type: ignore[arg-type]
        else:
            outputs = _read(layer, lines)  # type: ignore[arg-type]
        return torch.unflatten(outputs, 1, plane.shape[1:3])


def patches(plane: Tensor, side: int) -> Tensor:
    """(H, W, B, C) -> (W / side, H / side, B, side * side * C): the steps of a sweep across, patch by patch."""
    height, width, batch, size = plane.shape
    cut = plane.reshape(height // side, side, width // side, side, batch, size)
    return cut.permute(2, 0, 4, 1, 3, 5).reshape(width // side, height // side, batch, side * side * size)


def _read(layer: Layer, inputs: Tensor) -> Tensor:
    """(T, N, I) -> (T, N, 2H), both directions, on torch's own kernel."""
    outputs: Tensor = layer(inputs)[0]
    return outputs


def _read_eight_bit(layer: Layer, inputs: Tensor, step: float) -> Tensor:
    """The same, step by step, with `inputs` on the grid of multiples of `step`."""
    forward = _direction(layer, inputs, step, "")
    backward = _direction(layer, inputs.flip(0), step, "_reverse").flip(0)
    return torch.cat([forward, backward], -1)


def _direction(layer: Layer, inputs: Tensor, step: float, suffix: str) -> Tensor:
    w_ih, w_hh, b_ih, b_hh = (
        getattr(layer, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    size, gru = layer.hidden_size, isinstance(layer, nn.GRU)
    inner = torch.zeros_like(b_hh)
    if gru:  # a reset gate stands between the two biases of its new state
        inner[2 * size :] = b_hh[2 * size :]
    h = c = inputs.new_zeros(inputs.shape[1], size)
    outputs = []
    for gates in _product(inputs, step, w_ih, b_ih + (b_hh - inner)):  # (T, N, I) -> (T, N, G)
        h, c = (_gru_step if gru else _lstm_step)(gates, _product(h, HIDDEN, w_hh, inner), h, c)
        outputs.append(h)
    return torch.stack(outputs)


def _gru_step(gates: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """torch.nn.GRU's equations (Cho et al. 2014, the reset after the product); it has no cell state."""
    (r, z, n), (r_h, z_h, n_h) = gates.chunk(3, -1), recurrent.chunk(3, -1)
    new = (n + (r + r_h).sigmoid() * n_h).tanh()
    return new + (z + z_h).sigmoid() * (h - new), c


def _lstm_step(gates: Tensor, recurrent: Tensor, _: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """torch.nn.LSTM's equations."""
    i, f, g, o = (gates + recurrent).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _product(inputs: Tensor, step: float, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., I) times the transpose of (O, I), both as 8-bit integers, and a bias -> (..., O), rounded as by the graph.

    The sums are whole numbers below 2^24, which float32 holds exactly.
    """
    least, most = (0, 255) if step == PIXEL else (-128, 127)
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    sums = F.linear((inputs / step).round().clamp(least, most), (weight / scale[:, None]).round())
    return sums * (scale * step) + bias
