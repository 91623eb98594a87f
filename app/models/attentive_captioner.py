"""An image captioner that attends to the cells of an image grid and to tags, the words of detected objects."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.efficientnet_lite import CHANNELS, POOLED
from app.models.recurrent import STATE_VECTORS, Cell, Layer, LayerState, Recurrent
from app.models.steps import hidden_bias, step


class Scene(NamedTuple):
    """A batch of photographs; of captions without photographs the tags alone."""

    tags: Tensor  # (B, T, 2) int64: label, or the one after the last for no tag, or padding after that; kind
    grid: Tensor | None = None  # (B, C, 352)
    pooled: Tensor | None = None  # (B, 1280)

    def rows(self, index: Tensor) -> "Scene":
        """Return some of the photographs, in the order of `index`."""
        return Scene(*(None if part is None else part[index] for part in self))  # type: ignore[arg-type]


class Memory(NamedTuple):
    """The slots that the decoder attends to: C cells, or one learnt slot without a photograph, then T tags."""

    slots: Tensor  # (B, C + T, E)
    keys: Tensor  # (B, C + T, A)
    mask: Tensor  # (B, C + T): 0, or -inf for padding

    def rows(self, index: Tensor) -> "Memory":
        """Return the slots of some photographs, in the order of `index`."""
        return Memory(*(part[index] for part in self))


class AttentiveCaptioner(nn.Module):
    """P(next word | photograph, tags, words so far).

    The state starts from the photograph's pooled vector X and its tags, S_0 = tanh(V X + U sum of tags). After each
    word its h attends additively (Bahdanau et al. 2015, arXiv 1409.0473) to the slots and to a sentinel, a slot of
    zeros with a learnt key: a word of language alone (Lu et al. 2017, arXiv 1612.01887). The output layer is the
    embedding, applied to W h + the attended slots, so that attending to a tag makes its word likely.

    A tag is the mean of its label's word embeddings plus the embedding of its kind. Between two words a state is one
    flat row [c if the cell has one | h].
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        labels: Sequence[Sequence[int]],
        kinds: int,
        embedding_size: int,
        hidden_size: int,
        attention_size: int,
        cell: Cell,
        feature_dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        """`labels`: the word ids of each label, one or two; `kinds`: the number of kinds of a tag."""
        super().__init__()
        self.cell: Cell = cell
        self.hidden_size = hidden_size
        self.state_size = STATE_VECTORS[cell] * hidden_size
        self.feature_dropout = feature_dropout
        self.input_dropout = input_dropout
        self.output_dropout = output_dropout
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.labels: Tensor
        self.register_buffer("labels", torch.tensor([[ids[0], ids[-1]] for ids in labels]), persistent=False)
        self.no_tag = nn.Parameter(torch.zeros(1, embedding_size))
        self.kinds = nn.Embedding(kinds, embedding_size)
        self.image = nn.Linear(POOLED, self.state_size)
        self.tags = nn.Linear(embedding_size, self.state_size, bias=False)
        self.unseen = nn.Parameter(torch.zeros(self.state_size))  # V X without a photograph
        self.cells = nn.Linear(CHANNELS, embedding_size)
        self.unseen_cell = nn.Parameter(torch.zeros(embedding_size))
        self.keys = nn.Linear(embedding_size, attention_size)
        self.sentinel = nn.Parameter(torch.zeros(attention_size))  # its key
        self.query = nn.Linear(hidden_size, attention_size, bias=False)
        self.energy = nn.Linear(attention_size, 1, bias=False)
        self.recurrent = Recurrent(embedding_size, [hidden_size], cell=cell)
        self.said = nn.Linear(hidden_size, embedding_size)
        self.scale = nn.Parameter(torch.ones(()))  # of the logits
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.kinds.weight, -0.1, 0.1)
        self.recurrent.reset(hidden_size**-0.5, forget_bias=1.0)

    def begin(self, scene: Scene) -> tuple[Tensor, Memory]:
        """Return the state (B, S) before the first word, and the memory."""
        labels, kinds = scene.tags[..., 0], scene.tags[..., 1]  # (B, T)
        vectors = torch.cat([self.embedding(self.labels).mean(1), self.no_tag, torch.zeros_like(self.no_tag)])  # (L, E)
        tags = F.embedding(labels, vectors) + self.kinds(kinds) * (labels < len(self.labels))[..., None]  # (B, T, E)
        if scene.grid is None or scene.pooled is None:
            image = self.unseen.expand(len(tags), -1)
            cells = self.unseen_cell.expand(len(tags), 1, -1)
        else:
            image = self.image(F.dropout(scene.pooled, self.feature_dropout, self.training))
            cells = F.dropout(torch.relu(self.cells(scene.grid)), self.feature_dropout, self.training)
        state = torch.tanh(image + self.tags(tags.sum(1)))
        slots = torch.cat([cells.type_as(tags), tags], 1)
        seen = labels.new_zeros(cells.shape[:2])
        empty = torch.cat([seen, labels], 1) > len(self.labels)
        mask = torch.zeros_like(empty, dtype=slots.dtype).masked_fill(empty, -torch.inf)
        return state, Memory(slots, self.keys(slots), mask)

    def step(self, tokens: Tensor, state: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Word ids (B,) and the state (B, S) before -> log-probabilities (B, V), state (B, S) after, attention (B, L).

        The first word of every caption is `<eos>`; the attention's last number is the sentinel's.
        """
        (layer,), before = self.recurrent.layers, self._split_state(state)
        assert isinstance(layer, Layer)
        input_gates = F.linear(self._embed(tokens), layer.weight_ih, layer.bias)  # (B, E) -> (B, gates * H)
        hidden_gates = F.linear(before[0], layer.weight_hh, hidden_bias(layer))  # (B, H) -> (B, gates * H)
        after = step(layer, input_gates, hidden_gates, before)
        logits, attention = self._attend(after[0][:, None], memory)
        return logits[:, 0].log_softmax(-1), torch.cat([*reversed(after)], -1), attention[:, 0]

    def forward(self, scene: Scene, tokens: Tensor) -> Tensor:
        """Photographs and captions (B, T), each starting with `<eos>` -> logits (B, T, V)."""
        state, memory = self.begin(scene)
        embedded = self._embed(tokens).transpose(0, 1)  # (T, B, E)
        hidden, _ = self.recurrent(embedded, [self._split_state(state)])  # (T, B, H)
        logits, _ = self._attend(hidden.transpose(0, 1), memory)
        return logits

    @torch.no_grad()
    def sharpen(self, temperature: float) -> None:
        """Change the weights so that all logits are divided by `temperature` and nothing else changes."""
        self.scale.div_(temperature)
        self.bias.div_(temperature)

    def _attend(self, hidden: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Outputs (B, T, H) -> logits (B, T, V), attention (B, T, L + 1) over slots and sentinel."""
        query = self.query(hidden)[:, :, None]  # (B, T, 1, A)
        energies = self.energy(torch.tanh(memory.keys[:, None] + query)).squeeze(-1)  # (B, T, L)
        language = self.energy(torch.tanh(self.sentinel + query)).squeeze(-1)  # (B, T, 1)
        attention = torch.cat([energies + memory.mask[:, None], language], -1).float().softmax(-1)
        attended = attention[..., :-1].type_as(memory.slots) @ memory.slots  # (B, T, E)
        output = F.dropout(self.said(hidden) + attended, self.output_dropout, self.training)
        return F.linear(self.scale * output, self.embedding.weight, self.bias), attention

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(tokens)
        return F.dropout(embedded, self.input_dropout, self.training)

    def _split_state(self, state: Tensor) -> LayerState:
        """Split a state (B, S) into the cell's (h,) or (h, c), each (B, H)."""
        parts = state.chunk(self.state_size // self.hidden_size, -1)
        return tuple(part.contiguous() for part in reversed(parts))
