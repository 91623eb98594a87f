"""Recurrent layers of six cells, stacked, in one direction or two, over batches that may be ragged."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from app.models.memory_cells import MemoryCell

Cell: TypeAlias = Literal["rnn", "lstm", "peephole", "cifg", "gru", "peephole-cifg"]
CELLS: tuple[Cell, ...] = get_args(Cell)

LayerState: TypeAlias = tuple[Tensor, ...]
"""(h,) of one rnn or gru layer, (h, c) of the others, each (B, H); with two directions (2, B, H)."""

GATES: dict[Cell, int] = {"rnn": 1, "lstm": 4, "peephole": 4, "cifg": 3, "gru": 3, "peephole-cifg": 3}
"""Blocks of H rows in a cell's matrices."""
STATE_VECTORS: dict[Cell, int] = {"rnn": 1, "lstm": 2, "peephole": 2, "cifg": 2, "gru": 1, "peephole-cifg": 2}
"""Number of state vectors, of H numbers each, of a cell."""
PEEPHOLES: dict[Cell, int] = {"peephole": 3, "peephole-cifg": 2}
"""Number of gates with a peephole connection to the memory."""


def locked_dropout(inputs: Tensor, probability: float, *, training: bool) -> Tensor:
    """Dropout with one mask for all time steps of `inputs` (T, B, H) (Gal & Ghahramani 2016)."""
    if not training or probability == 0:
        return inputs
    keep = inputs.new_ones(1, *inputs.shape[1:])
    return inputs * F.dropout(keep, probability)


class Layer(nn.Module):
    """One layer of a cell, in one direction.

    With a = W_ih x_t + W_hh h_{t-1} + b in one block of H rows a gate, p * c a peephole (element by element):

    rnn            h = tanh(a)   (Elman 1990)
    lstm           i, f, o = sigmoid(a_i, a_f, a_o), g = tanh(a_g), c_t = f * c_{t-1} + i * g, h_t = o * tanh(c_t); rows
                   i, f, g, o   (Hochreiter & Schmidhuber 1997; f of Gers, Schmidhuber & Cummins 2000)
    peephole       the same with p_i * c_{t-1} added to a_i, p_f * c_{t-1} to a_f and p_o * c_t to a_o; the rows of
                   `peephole` are i, f, o   (Gers & Schmidhuber 2000)
    cifg           lstm with f = 1 - i; rows i, g, o   (Greff et al. 2015, arXiv 1503.04069)
    peephole-cifg  both: the peepholes of i and o   (the same)
    gru            r, z = sigmoid(a_r, a_z), n = tanh(W_in x_t + b_n + r * (W_hn h_{t-1} + bias_hn)),
                   h_t = (1 - z) * n + z * h_{t-1}; rows r, z, n   (Cho et al. 2014, arXiv 1406.1078, in torch's form)

    One bias, not torch's two, which are only ever added up (except bias_hn, which r scales). `weight_drop` drops
    entries of W_hh, one mask for the whole window (Merity et al. 2018, arXiv 1708.02182). rnn, lstm and gru run on
    torch's own kernels, the others on `MemoryCell`.
    """

    def __init__(self, input_size: int, hidden_size: int, *, cell: Cell = "lstm", weight_drop: float = 0.0) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.cell: Cell = cell
        self.weight_drop = weight_drop
        rows = GATES[cell] * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias = nn.Parameter(torch.empty(rows))
        self.bias_hn = nn.Parameter(torch.empty(hidden_size)) if cell == "gru" else None
        self.peephole = nn.Parameter(torch.empty(PEEPHOLES[cell], hidden_size)) if cell in PEEPHOLES else None
        no_bias = rows - hidden_size if cell == "gru" else rows
        self.register_buffer("no_bias", torch.zeros(no_bias), persistent=False)

    def reset(self, initial_range: float, forget_bias: float) -> None:
        """Weights uniform in ±initial_range, biases and peepholes 0.

        The forget gate's bias is `forget_bias` (Jozefowicz et al. 2015); where it is coupled, f = 1 - i, the input
        gate's is -forget_bias, which is the same f. rnn and gru have no forget gate: `forget_bias` has no effect there.
        """
        for name, parameter in self.named_parameters():
            if name.startswith(("bias", "peephole")):  # a random peephole can hold a gate open that feeds its own input
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -initial_range, initial_range)
        with torch.no_grad():
            if self.cell in ("lstm", "peephole"):
                self.bias[self.hidden_size : 2 * self.hidden_size] = forget_bias
            elif self.cell in ("cifg", "peephole-cifg"):
                self.bias[: self.hidden_size] = -forget_bias

    def forward(self, inputs: Tensor, state: LayerState, lengths: Tensor | None = None) -> tuple[Tensor, LayerState]:
        """(T, B, I) and the state before -> (T, B, H), 0 after a sequence's end, and the state after its last step.

        `lengths` (B,): the steps of each sequence, 1 to T; None for T each.
        """
        if lengths is None:
            return self._read_even(inputs, state)
        packed = pack_padded_sequence(inputs, lengths.cpu(), enforce_sorted=False)
        _, sizes, order, back = packed
        assert order is not None
        assert back is not None
        rows, after = self._read_packed(packed.data, sizes, _reordered(state, order))
        outputs, _ = pad_packed_sequence(PackedSequence(rows, sizes, order, back), total_length=len(inputs))
        return outputs, _reordered(after, back)

    def _read_even(self, inputs: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        steps, batch, _ = inputs.shape
        weights = self._weights()
        before = tuple(part.unsqueeze(0) for part in state)
        match self.cell:
            case "lstm":
                outputs, *after = torch.lstm(inputs, before, weights, True, 1, 0.0, self.training, False, False)
            case "rnn" | "gru":
                kernel = torch.rnn_tanh if self.cell == "rnn" else torch.gru
                outputs, *after = kernel(inputs, before[0], weights, True, 1, 0.0, self.training, False, False)
            case _:
                rows, after_rows = self._read_memory(inputs.flatten(0, 1), [batch] * steps, state)
                return rows.view(steps, batch, self.hidden_size), after_rows
        return outputs, tuple(part.squeeze(0) for part in after)

    def _read_packed(self, rows: Tensor, sizes: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Process a packed batch, longest sequence first: (N, I) -> (N, H)."""
        weights = self._weights()
        before = tuple(part.unsqueeze(0) for part in state)
        match self.cell:
            case "lstm":
                outputs, *after = torch.lstm(rows, sizes, before, weights, True, 1, 0.0, self.training, False)
            case "rnn" | "gru":
                kernel = torch.rnn_tanh if self.cell == "rnn" else torch.gru
                outputs, *after = kernel(rows, sizes, before[0], weights, True, 1, 0.0, self.training, False)
            case _:
                return self._read_memory(rows, sizes.tolist(), state)
        return outputs, tuple(part.squeeze(0) for part in after)

    def _read_memory(self, rows: Tensor, sizes: Sequence[int], state: LayerState) -> tuple[Tensor, LayerState]:
        device = rows.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight_ih.dtype
        weights = (self.weight_ih, self._recurrent_weights(), self.bias)
        narrow = (part.to(kind) for part in (rows, *weights))
        h, c = state
        outputs, h, c = MemoryCell.apply(*narrow, self.peephole, h.to(kind), c, sizes)
        return outputs, (h, c)

    def _recurrent_weights(self) -> Tensor:
        return F.dropout(self.weight_hh, self.weight_drop, training=self.training)

    def _weights(self) -> list[Tensor]:
        """Return the weights as torch's kernels expect them."""
        recurrent_bias = self.get_buffer("no_bias")
        if self.bias_hn is not None:
            recurrent_bias = torch.cat([recurrent_bias, self.bias_hn])
        return [self.weight_ih, self._recurrent_weights(), self.bias, recurrent_bias]


class Recurrent(nn.Module):
    """Stacked layers of one cell, `hidden_sizes[k]` units in layer k and direction, with dropout between them.

    `locked` keeps one dropout mask for all steps of a window; otherwise every step draws its own. With `bidirectional`
    every layer runs in both directions (Schuster & Paliwal 1997), the backward one from each sequence's own last step.
    The next layer's input is both outputs concatenated, forward first.
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        *,
        cell: Cell = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
        locked: bool = True,
        weight_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden_sizes:
            raise ValueError("hidden_sizes: expected at least one layer, found none")
        if cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, found {cell!r}")
        self.hidden_sizes = tuple(hidden_sizes)
        self.cell: Cell = cell
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.locked = locked
        directions = 2 if bidirectional else 1
        input_sizes = [input_size, *(directions * size for size in hidden_sizes[:-1])]

        def layers() -> nn.ModuleList:
            return nn.ModuleList(
                Layer(size_in, size_out, cell=cell, weight_drop=weight_drop)
                for size_in, size_out in zip(input_sizes, hidden_sizes, strict=True)
            )

        self.layers = layers()
        self.reversed_layers = layers() if bidirectional else nn.ModuleList()

    def reset(self, initial_range: float, forget_bias: float) -> None:
        """Initialise every layer; see `Layer.reset`."""
        for layer in (*self.layers, *self.reversed_layers):
            layer.reset(initial_range, forget_bias)

    def initial_state(self, batch_size: int) -> list[LayerState]:
        """Zero states, one a layer."""
        weight = next(self.parameters())
        directions = (2,) if self.bidirectional else ()
        return [
            tuple(weight.new_zeros(*directions, batch_size, size) for _ in range(STATE_VECTORS[self.cell]))
            for size in self.hidden_sizes
        ]

    def forward(
        self, inputs: Tensor, state: Sequence[LayerState] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """(T, B, I) and the states before (None: zeros) -> outputs of the last layer and the states after.

        The outputs are (T, B, H), with two directions (T, B, 2H), without dropout, and 0 after a sequence's end; a
        state is that after each sequence's own last step, of the backward direction that after its first. `lengths`
        (B,) int64 are the steps of each sequence, 1 to T; None for T each.

        Raise ValueError for lengths out of range.
        """
        if lengths is not None:
            _check_lengths(lengths, inputs)
        state = self.initial_state(inputs.shape[1]) if state is None else state
        after = []
        for index, before in zip(range(len(self.layers)), state, strict=True):
            if index:
                dropout = locked_dropout if self.locked else F.dropout
                inputs = dropout(inputs, self.dropout, training=self.training)
            inputs, layer_after = self._read(index, inputs, before, lengths)
            after.append(layer_after)
        return inputs, after

    def _read(
        self, index: int, inputs: Tensor, before: LayerState, lengths: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """One layer, in both directions if there are two."""
        if not self.bidirectional:
            outputs, after = self.layers[index](inputs, before, lengths)
            return outputs, after
        forward, forward_after = self.layers[index](inputs, tuple(part[0] for part in before), lengths)
        backward, backward_after = self.reversed_layers[index](
            _reversed(inputs, lengths), tuple(part[1] for part in before), lengths
        )
        after = tuple(torch.stack(pair) for pair in zip(forward_after, backward_after, strict=True))
        return torch.cat([forward, _reversed(backward, lengths)], -1), after


def _check_lengths(lengths: Tensor, inputs: Tensor) -> None:
    steps, batch, _ = inputs.shape
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths: expected one for each of {batch} sequences, found a shape of {tuple(lengths.shape)}"
        )
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 1 or longest > steps:
        raise ValueError(f"lengths: expected 1 to {steps} steps, found {shortest} to {longest}")


def _reversed(rows: Tensor, lengths: Tensor | None) -> Tensor:
    """Return (T, B, H) with every sequence reversed from its own last step; padding stays."""
    if lengths is None:
        return rows.flip(0)
    steps = torch.arange(len(rows), device=rows.device)[:, None]  # (T, 1)
    ends = lengths.to(rows.device)
    source = torch.where(steps < ends, ends - 1 - steps, steps)  # (T, B)
    return rows.gather(0, source[:, :, None].expand_as(rows))


def _reordered(state: LayerState, order: Tensor) -> LayerState:
    return tuple(part.index_select(0, order) for part in state)
