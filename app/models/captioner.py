"""An image captioner: a recurrent network conditioned once on an image's feature vector."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.recurrent import GATES, STATE_VECTORS, Cell, Layer, LayerState, Recurrent
from app.models.steps import hidden_bias, step
from app.models.torch_weights import accept_torch_weights

Inject: TypeAlias = Literal["chapter", "init", "pre"]


class Captioner(nn.Module):
    """P(next word | image, words so far) over `vocabulary_size` words, the image a vector X of `feature_size` numbers.

    How X enters is `inject`:

    chapter   S_t = f(U x_t + W S_{t-1} + V X), the term V X at the first step only, S_0 = 0. V X has a row for every
              gate and is added to all the gates' pre-activations; in the GRU to U x_t, outside of what r scales.
    init      S_0 = tanh(V X), both h and c where there is a c (init-inject of Tanti et al. 2018, arXiv 1703.09137)
    pre       V X is the first word, S_0 = 0 (pre-inject, ibid.; Vinyals et al. 2015, arXiv 1411.4555)

    Whole captions (`forward`) are processed by `Recurrent`. Between two words (`begin`, `step`) a state is one flat
    row of `state_size` numbers: [V X if it has yet to enter, chapter only | c if the cell has one | h]. The last H are
    the input of the output layer. With `tied` that layer's matrix is the embedding.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        embedding_size: int,
        hidden_size: int,
        cell: Cell,
        inject: Inject,
        tied: bool = False,
        feature_dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if tied and hidden_size != embedding_size:
            raise ValueError(f"tied: expected hidden_size of the embedding's {embedding_size}, found {hidden_size}")
        self.hidden_size = hidden_size
        self.state_width = STATE_VECTORS[cell] * hidden_size  # numbers of a state that the cell itself carries on
        self.cell: Cell = cell
        self.inject: Inject = inject
        self.feature_dropout = feature_dropout
        self.input_dropout = input_dropout
        self.output_dropout = output_dropout
        injected = {
            "chapter": GATES[cell] * hidden_size,
            "init": self.state_width,
            "pre": embedding_size,
        }[inject]
        self.image = nn.Linear(feature_size, injected, bias=inject != "chapter")
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.recurrent = Recurrent(embedding_size, [hidden_size], cell=cell)
        accept_torch_weights(self.recurrent)
        self.output = nn.Linear(hidden_size, vocabulary_size)
        self.state_size = self.state_width + (injected if inject == "chapter" else 0)
        # Torch's own start, but for small embeddings, biases of 0 and forget gates open (Jozefowicz et al. 2015)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.recurrent.reset(self.hidden_size**-0.5, forget_bias=1.0)
        if tied:
            self.output.weight = self.embedding.weight

    def begin(self, features: Tensor) -> Tensor:
        """Image features (B, F) -> the state (B, S) before the first word."""
        image = self.image(F.dropout(features, self.feature_dropout, self.training))
        zeros = image.new_zeros(len(features), self.state_width)
        match self.inject:
            case "chapter":
                return torch.cat([image, zeros], -1)
            case "init":
                return torch.tanh(image)
            case "pre":
                return self._advance(image, zeros)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Word ids (B,) and the state (B, S) before -> log-probabilities (B, V) of the next word, state (B, S) after.

        The first word of every caption is `<eos>`.
        """
        state = self._advance(self._embed(tokens), state)
        return self._logits(state[:, -self.hidden_size :]).log_softmax(-1), state

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Image features (B, F) and captions (B, T), each starting with `<eos>` -> logits (B, T, V)."""
        embedded = self._embed(tokens)  # (B, T) -> (B, T, E)
        state = self._advance(embedded[:, 0], self.begin(features))
        hidden = state[:, None, -self.hidden_size :]  # (B, 1, H)
        if tokens.shape[1] > 1:
            rest, _ = self.recurrent(embedded[:, 1:].transpose(0, 1), [self._split_state(state)])  # (T - 1, B, H)
            hidden = torch.cat([hidden, rest.transpose(0, 1)], 1)  # (B, T, H)
        return self._logits(hidden)

    @torch.no_grad()
    def sharpen(self, temperature: float) -> None:
        """Change the weights so that all logits are divided by `temperature` and nothing else changes."""
        self.output.weight.div_(temperature)
        self.output.bias.div_(temperature)
        if self.output.weight is self.embedding.weight:  # undo the scaling of the tied word embeddings
            self._layer().weight_ih.mul_(temperature)
            if self.inject == "pre":
                self.image.weight.div_(temperature)
                self.image.bias.div_(temperature)

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(tokens)
        return F.dropout(embedded, self.input_dropout, self.training)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.output(F.dropout(hidden, self.output_dropout, self.training))
        return logits

    def _advance(self, inputs: Tensor, state: Tensor) -> Tensor:
        """One step of the recurrence: inputs (B, E), state (B, S) -> state (B, S), the pending V X used up."""
        image, before = state[:, : -self.state_width], self._split_state(state)
        layer = self._layer()
        input_gates = F.linear(inputs, layer.weight_ih, layer.bias)  # (B, E) -> (B, gates * H)
        if self.inject == "chapter":
            input_gates = input_gates + image
        hidden_gates = F.linear(before[0], layer.weight_hh, hidden_bias(layer))  # (B, H) -> (B, gates * H)
        after = step(layer, input_gates, hidden_gates, before)
        return torch.cat([torch.zeros_like(image), *reversed(after)], -1)

    def _layer(self) -> Layer:
        (layer,) = self.recurrent.layers
        assert isinstance(layer, Layer)
        return layer

    def _split_state(self, state: Tensor) -> LayerState:
        """Split a state (B, S) into the cell's (h,) or (h, c), each (B, H)."""
        parts = state[:, -self.state_width :].chunk(self.state_width // self.hidden_size, -1)
        return tuple(part.contiguous() for part in reversed(parts))
