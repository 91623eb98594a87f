"""Loading of weights of nn.RNN, nn.LSTM and nn.GRU, which older checkpoints and bundles hold, into `Recurrent`."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from app.models.recurrent import Recurrent


def accept_torch_weights(recurrent: Recurrent) -> None:
    """Let `load_state_dict` accept the weights of torch's own module of the same cell and sizes as well.

    Torch's two biases are added up, except in the GRU's new state, where the reset gate scales the second.
    """
    recurrent.register_load_state_dict_pre_hook(_translate)  # type: ignore[no-untyped-call]


def _translate(recurrent: Any, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Rename the `weights` that have torch's names."""
    for ours, theirs in _names(recurrent):
        if f"{prefix}weight_ih_{theirs}" in weights:
            weight_ih, weight_hh, bias_ih, bias_hh = (
                weights.pop(f"{prefix}{part}_{theirs}") for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            inner = bias_hh.float()
            if recurrent.cell == "gru":
                outer, weights[f"{prefix}{ours}.bias_hn"] = torch.tensor_split(inner, [len(inner) // 3 * 2])
                inner = torch.cat([outer, torch.zeros(len(inner) // 3)])
            weights[f"{prefix}{ours}.bias"] = bias_ih.float() + inner
            weights |= {f"{prefix}{ours}.weight_ih": weight_ih, f"{prefix}{ours}.weight_hh": weight_hh}


def _names(recurrent: Recurrent) -> Iterator[tuple[str, str]]:
    """Yield for each layer and direction our module's name and the suffix of torch's parameter names."""
    for n in range(len(recurrent.hidden_sizes)):
        yield f"layers.{n}", f"l{n}"
        if recurrent.bidirectional:
            yield f"reversed_layers.{n}", f"l{n}_reverse"
