"""A language model whose recurrence has no step-to-step product: a residual stack of gated linear recurrences."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from app.models import native

BlockState: TypeAlias = tuple[Tensor, Tensor]
"""h (B, H) in float32 and the last inputs of the convolution (K - 1, B, D)."""


class GatedRecurrence(Function):
    """h_t = (1 - sigmoid z_t) h_{t-1} + sigmoid(z_t) c_t, in float32 at least, differentiated by hand.

    apply(z (T, B, H), c (T, B, H), h (B, H), keep (T, B, 1) or None) -> (T, B, H). Where `keep` is 0 the step starts
    from h_{t-1} = 0. The gradient itself can't be differentiated.

    minGRU of Feng et al. 2024 (arXiv 2410.01201); QRNN (1611.01576) and SRU (1709.02755) before it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, c: Tensor, h: Tensor, keep: Tensor | None) -> Tensor:  # noqa: D102
        wide = torch.promote_types(z.dtype, torch.float32)
        if keep is None:
            keep = h.new_ones(*z.shape[:2], 1)
        before, kept = h.to(wide).contiguous(), keep.to(wide).contiguous()
        read = torch.ops.seqserve.linear_read if _native(z) else _read
        outputs: Tensor = read(z, c, before, kept)
        ctx.save_for_backward(z, c, before, kept, outputs)
        ctx.kind = h.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: D102
        z, c, h, keep, outputs = ctx.saved_tensors
        trace = torch.ops.seqserve.linear_trace if _native(z) else _trace
        to_z, to_c, to_h = trace(z, c, h, keep, outputs, gradient.contiguous())
        return to_z, to_c, to_h.to(ctx.kind), None


class GateInput(nn.Module):
    """Pre-norm, a causal convolution over the last K steps of each channel, and the gates' product.

    (T, B, D) -> z, c, g (T, B, H) each, and the inputs that the convolution still needs (K - 1, B, D).
    """

    def __init__(self, width: int, hidden_size: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.kernel = nn.Parameter(torch.zeros(kernel, width))
        self.gates = nn.Linear(width, 3 * hidden_size)
        with torch.no_grad():
            self.kernel[-1] = 1  # at first the step's own input

    def forward(self, x: Tensor, tail: Tensor, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`masks`: for the convolution's steps back 1 to K - 1 (T, B, 1), 0 where a reset lies between; or none."""
        y = self.norm(x)
        padded = torch.cat([tail.to(y.dtype), y]) if len(tail) else y  # (K - 1 + T, B, D)
        mixed = y * self.kernel[-1]
        for back in range(1, len(self.kernel)):
            past = padded[len(tail) - back : len(padded) - back] * self.kernel[-1 - back]
            mixed = mixed + (past * masks[back - 1] if masks else past)
        z, c, g = self.gates(mixed).chunk(3, -1)
        return z, c, g, padded[len(x) :]


class Mixing(nn.Module):
    """The recurrence's gated output and a gated MLP, each added to the residual stream (T, B, D)."""

    def __init__(self, width: int, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.out = nn.Linear(hidden_size, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 2 * inner_size, bias=False)
        self.down = nn.Linear(inner_size, width, bias=False)

    def forward(self, x: Tensor, h: Tensor, g: Tensor) -> Tensor:  # noqa: D102
        x = x + self.out(h * F.silu(g))
        a, b = self.up(self.norm(x)).chunk(2, -1)
        mixed: Tensor = x + self.down(a * F.silu(b))
        return mixed


class Block(nn.Module):
    """One layer: x + V (h * silu g), then x + W2 (a * silu b) with a, b = W1 x."""

    def __init__(self, width: int, hidden_size: int, inner_size: int, kernel: int) -> None:
        super().__init__()
        self.input = GateInput(width, hidden_size, kernel)
        self.mixing = Mixing(width, hidden_size, inner_size)

    def forward(
        self, x: Tensor, state: BlockState, keep: Tensor | None, masks: Sequence[Tensor]
    ) -> tuple[Tensor, BlockState]:
        """(T, B, D) and the state before -> (T, B, D) and the state after."""
        h, tail = state
        z, c, g, tail = self.input(x, tail, masks)
        outputs = GatedRecurrence.apply(z, c, h, keep)
        return self.mixing(x, outputs, g), (outputs[-1], tail)


class GatedRecurrentLanguageModel(nn.Module):
    """P(next piece | pieces so far): tied embedding, `layers` residual blocks, a softmax over the vocabulary.

    A residual stack as in Griffin (De et al. 2024, arXiv 2402.19427), its recurrence that of minGRU.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        embedding_size: int,
        width: int,
        layers: int,
        hidden_size: int,
        inner_size: int,
        kernel: int = 1,
        longest_memory: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        """The bias of z is drawn from -longest_memory to 0; `kernel` is 1 without a convolution."""
        super().__init__()
        if kernel < 1:
            raise ValueError(f"kernel: expected 1 or more, found {kernel}")
        self.hidden_size = hidden_size
        self.width = width
        self.tail = kernel - 1
        self.dropout = dropout
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.scale = math.sqrt(embedding_size)
        self.enter = nn.Linear(embedding_size, width, bias=False)
        self.blocks = nn.ModuleList(Block(width, hidden_size, inner_size, kernel) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.leave = nn.Linear(width, embedding_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        with torch.no_grad():
            for block in self.blocks:
                assert isinstance(block, Block)
                nn.init.zeros_(block.input.gates.bias)
                block.input.gates.bias[:hidden_size].uniform_(-longest_memory, 0)
                for matrix in (block.mixing.out.weight, block.mixing.down.weight):
                    matrix /= math.sqrt(2 * layers)

    def initial_state(self, batch_size: int) -> list[BlockState]:
        """Zero states, one a block."""
        weight = self.bias
        return [
            (weight.new_zeros(batch_size, self.hidden_size), weight.new_zeros(self.tail, batch_size, self.width))
            for _ in self.blocks
        ]

    def forward(
        self, tokens: Tensor, state: Sequence[BlockState], resets: Tensor | None = None
    ) -> tuple[Tensor, list[BlockState]]:
        """Ids (T, B) and the states before -> the vectors before the softmax (T, B, E) and the states after.

        `resets` (T, B), bool: the steps before which the state is set to zero.
        """
        keep, masks = None, []
        if resets is not None:
            keep = (~resets).unsqueeze(-1).to(self.bias.dtype)  # (T, B, 1)
            masks = _masks(keep, self.tail)
        x = self.enter(self._drop(F.embedding(tokens, self.embedding.weight) * self.scale))  # (T, B) -> (T, B, D)
        x = x.to(self.bias.dtype)
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            x, (h, tail) = block(x, before, keep, masks)
            after.append((h, _cut_tail(tail, resets)))
        return self.leave(self._drop(self.norm(x))), after

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., E) -> (..., V)."""
        return F.linear(hidden, self.embedding.weight, self.bias)

    def _drop(self, inputs: Tensor) -> Tensor:
        """Dropout with one mask for all steps of a window (Gal & Ghahramani 2016)."""
        if not self.training or self.dropout == 0:
            return inputs
        return inputs * F.dropout(inputs.new_ones(1, *inputs.shape[1:]), self.dropout)


def detached(state: Sequence[BlockState]) -> list[BlockState]:
    """Copies cut from the graph, and from the windows they are views of: truncated back-propagation through time."""
    return [(h.detach().clone(), tail.detach().clone()) for h, tail in state]


def _native(z: Tensor) -> bool:
    return z.device.type == "cpu" and native.loaded()


def _read(z: Tensor, c: Tensor, h: Tensor, keep: Tensor) -> Tensor:
    """`GatedRecurrence` step by step; h and keep are of the outputs' type."""
    update, candidate = z.to(h.dtype).sigmoid(), c.to(h.dtype)
    outputs = torch.empty_like(candidate)
    for t in range(len(z)):
        h = torch.lerp(h * keep[t], candidate[t], update[t], out=outputs[t])
    return outputs


def _trace(
    z: Tensor, c: Tensor, h: Tensor, keep: Tensor, outputs: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of z, c and h."""
    update = z.to(h.dtype).sigmoid()
    decay = (1 - update) * keep  # (T, B, H)
    total = torch.empty_like(outputs)  # the gradient of each h_t
    total[-1] = gradient[-1]
    for t in range(len(outputs) - 2, -1, -1):
        torch.addcmul(gradient[t], total[t + 1], decay[t + 1], out=total[t])
    to_c = total * update
    to_z = to_c * (1 - update) * (c - torch.cat([h[None], outputs[:-1]]) * keep)
    return to_z.to(z.dtype), to_c.to(c.dtype), total[0] * decay[0]


def _masks(keep: Tensor, tail: int) -> list[Tensor]:
    """For 1 to `tail` steps back (T, B, 1): 0 where a reset lies between that step and this one."""
    masks: list[Tensor] = []
    for back in range(1, tail + 1):
        before = masks[-1] if masks else torch.ones_like(keep)
        shifted = torch.ones_like(keep)
        shifted[back - 1 :] = keep[: len(keep) - back + 1]
        masks.append(before * shifted)
    return masks


def _cut_tail(tail: Tensor, resets: Tensor | None) -> Tensor:
    """Zero what lies before the last reset, so that the next window needs no memory of it: (K - 1, B, D)."""
    if resets is None or not len(tail):
        return tail
    known = resets[-len(tail) :]  # may be shorter than the tail
    later = known.flip(0).cumsum(0).flip(0) > 0  # a reset at this step or later
    gone = torch.cat([later[:1].expand(len(tail) - len(known), -1), later[1:], torch.zeros_like(later[:1])])
    return tail * (~gone).unsqueeze(-1).to(tail.dtype)
