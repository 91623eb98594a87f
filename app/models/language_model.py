"""A recurrent language model: embedding, recurrent layers, softmax over the vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from app.models.recurrent import Cell, LayerState, Recurrent, locked_dropout


class Reading(NamedTuple):
    """Outputs of the recurrent layers over a window of tokens."""

    hidden: Tensor  # (T, B, H): input of the softmax layer, after dropout
    raw: Tensor  # (T, B, H): before dropout
    state: list[LayerState]


class LanguageModel(nn.Module):
    """P(next token | tokens so far) over `vocabulary_size` tokens.

    Zaremba et al. 2014 (arXiv 1409.2329) with `locked=False`; Merity et al. 2018 (AWD-LSTM, arXiv 1708.02182) with
    `locked=True`, `tied=True` and dropout on the recurrent weights and on whole words of the embedding.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        embedding_size: int,
        hidden_sizes: Sequence[int],
        tied: bool,
        cell: Cell = "lstm",
        initial_range: float = 0.1,
        forget_bias: float = 1.0,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_drop: float = 0.0,
        embedding_dropout: float = 0.0,
        locked: bool = True,
    ) -> None:
        super().__init__()
        if tied and hidden_sizes[-1] != embedding_size:
            raise ValueError(
                f"tied: expected a last layer of the embedding's size {embedding_size}, found {hidden_sizes[-1]}"
            )
        self.input_dropout = input_dropout
        self.output_dropout = output_dropout
        self.embedding_dropout = embedding_dropout
        self.locked = locked
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.recurrent = Recurrent(
            embedding_size, hidden_sizes, cell=cell, dropout=hidden_dropout, locked=locked, weight_drop=weight_drop
        )
        self.output = nn.Linear(hidden_sizes[-1], vocabulary_size)
        nn.init.uniform_(self.embedding.weight, -initial_range, initial_range)
        nn.init.uniform_(self.output.weight, -initial_range, initial_range)
        nn.init.zeros_(self.output.bias)
        self.recurrent.reset(initial_range, forget_bias)
        if tied:
            self.output.weight = self.embedding.weight

    def initial_state(self, batch_size: int) -> list[LayerState]:
        """Return zero states, one a layer: (h,) or (h, c), by cell."""
        return self.recurrent.initial_state(batch_size)

    def forward(self, tokens: Tensor, state: Sequence[LayerState]) -> Reading:
        """Token ids (T, B) and the states before -> the hidden vectors of all steps and the states after."""
        embedded = self._drop(self._embed(tokens), self.input_dropout)  # (T, B) -> (T, B, E)
        raw, after = self.recurrent(embedded, state)  # (T, B, E) -> (T, B, H)
        return Reading(self._drop(raw, self.output_dropout), raw, after)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., V)."""
        logits: Tensor = self.output(hidden)
        return logits

    def _embed(self, tokens: Tensor) -> Tensor:
        weight = self.embedding.weight
        if self.training and self.embedding_dropout:
            weight = weight * F.dropout(weight.new_ones(len(weight), 1), self.embedding_dropout)
        return F.embedding(tokens, weight)

    def _drop(self, inputs: Tensor, probability: float) -> Tensor:
        if self.locked:
            return locked_dropout(inputs, probability, training=self.training)
        return F.dropout(inputs, probability, training=self.training)


def detached(state: Sequence[LayerState]) -> list[LayerState]:
    """Return the states detached from the graph, for truncated back-propagation through time."""
    return [tuple(part.detach() for part in layer) for layer in state]


def parameter_count(module: nn.Module) -> int:
    """Return the number of trainable parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())
