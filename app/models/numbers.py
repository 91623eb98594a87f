"""A reader of handwritten numbers: bidirectional recurrent layers over columns, with CTC and without convolution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.models.digits import HIDDEN, PIXEL, SIDE, bidirectional, read
from app.models.recurrent import Cell

BLANK = 10  # the class of no digit, after the ten digits


class NumberReader(nn.Module):
    """Bidirectional layers over the columns of a strip (Graves et al. 2009, doi 10.1109/TPAMI.2008.137).

    A step is `columns` columns of 28 pixels; its logits are those of the digits 0 to 9 and of the blank of CTC
    (Graves et al. 2006, doi 10.1145/1143844.1143891). A strip is black beyond its number, so padding is ground.
    """

    def __init__(
        self, hidden_sizes: Sequence[int], *, columns: int = 2, cell: Cell = "lstm", dropout: float = 0.0
    ) -> None:
        """`hidden_sizes`: units a direction of each layer; `dropout` before every layer but the first."""
        super().__init__()
        self.eight_bit = False
        self.columns = columns
        self.layers = nn.ModuleList()
        size = SIDE * columns
        for hidden in hidden_sizes:
            self.layers.append(bidirectional(size, hidden, cell, 1.0))
            size = 2 * hidden
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(size, BLANK + 1)

    def forward(self, strips: Tensor) -> Tensor:
        """(B, 28, W) in 0..1, W a multiple of `columns` -> logits (W / columns, B, 11)."""
        steps = torch.unflatten(strips, 2, (-1, self.columns)).permute(2, 0, 1, 3).flatten(2)  # (T, B, 28 * columns)
        for index, layer in enumerate(self.layers):
            grid = HIDDEN if index else PIXEL
            steps = read(layer, self.dropout(steps) if index else steps, grid if self.eight_bit else None)
        logits: Tensor = self.output(self.dropout(steps))
        return logits
