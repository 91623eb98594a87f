"""The LSTM variants that torch lacks, peepholes and coupled gates, over a packed batch, with their own backward pass.

A batch is packed as by torch.nn.utils.rnn: longest sequence first, the rows of step 0, then those of step 1, ...;
`sizes[t]` sequences are still running at step t, N = sum(sizes) rows in all.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from app.models import native

ONEDNN: bool = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class MemoryCell(Function):
    """One layer with a memory c, whose gates may see c and whose forget gate may be coupled to its input gate.

    apply(rows (N, I), weight_ih (G*H, I), weight_hh (G*H, H), bias (G*H,), peephole (P, H) or None, h (B, H), c (B, H),
    sizes) -> outputs (N, H), h (B, H) and c (B, H) after each sequence's own last step. G = 4 has the gates i, f, g, o
    and the peepholes of i, f, o; G = 3 has i, g, o and f = 1 - i, the peepholes of i, o.

    All but `c` and `peephole` have one dtype, that of the matrix products. Gates and c are computed in float32 at
    least. Double backward is not supported.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        rows: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor,
        peephole: Tensor | None,
        h: Tensor,
        c: Tensor,
        sizes: Sequence[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(rows.dtype, torch.float32)
        seen = _peepholes(peephole, weight_hh, wide)
        read = torch.ops.seqserve.read if _native(rows) else _read
        values = _product(rows, weight_ih, bias).to(wide)  # (N, I) -> (N, G*H)
        first = h.contiguous(), c.to(wide).contiguous()
        outputs, memory = read(values, weight_hh.contiguous(), seen, *first, sizes)
        ctx.save_for_backward(rows, weight_ih, weight_hh, peephole, h, c, values, outputs, memory)
        ctx.sizes = sizes
        last = _last(sizes).to(rows.device)
        return outputs, outputs[last], memory[last].to(c.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        rows, weight_ih, weight_hh, peephole, h, c, values, outputs, memory = ctx.saved_tensors
        d_outputs, d_h, d_c = gradients
        d_h = d_h.clone(memory_format=torch.contiguous_format)
        d_c = d_c.to(memory.dtype, copy=True, memory_format=torch.contiguous_format)
        seen = _peepholes(peephole, weight_hh, memory.dtype)
        before = _shifted(c.to(memory.dtype), memory, ctx.sizes)
        trace = torch.ops.seqserve.trace if _native(rows) else _trace
        d_gates, d_bias, d_peephole = trace(
            values, weight_hh.contiguous(), seen, before, memory, d_outputs.contiguous(), d_h, d_c, ctx.sizes
        )
        wanted = ctx.needs_input_grad
        # (G*H, N), once for both products; contiguous for oneDNN, which is faster there; torch.mm is indifferent
        by_gate = d_gates.T.contiguous() if _by_onednn(d_gates) else d_gates.T
        return (
            _product(d_gates, weight_ih.T) if wanted[0] else None,
            _product(by_gate, rows.T) if wanted[1] else None,
            _product(by_gate, _shifted(h, outputs, ctx.sizes).T) if wanted[2] else None,
            d_bias.to(rows.dtype),
            None if peephole is None else d_peephole.to(peephole.dtype),
            d_h,
            d_c.to(c.dtype),
            None,
        )


def _read(
    values: Tensor, weight_hh: Tensor, peephole: Tensor, h: Tensor, c: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """W_ih x + b (N, G*H), overwritten by the gates' values, and the state before -> outputs and memory (N, H)."""
    outputs, memory = h.new_empty(len(values), h.shape[1]), c.new_empty(len(values), h.shape[1])
    for step, size in _steps(sizes):
        values[step] += _product(h[:size], weight_hh)
        outputs[step], memory[step] = _advance(values[step], peephole, c[:size])
        h, c = outputs[step], memory[step]
    return outputs, memory


def _advance(gates: Tensor, peephole: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations (B, G*H), overwritten by the gates' values, and c (B, H) before -> h and c after."""
    *inward, g, o = _gates(gates, c)
    for gate, weight in zip(inward, peephole[:-1], strict=True):
        gate.addcmul_(c, weight).sigmoid_()
    g.tanh_()
    c = _forget(inward) * c + inward[0] * g
    o.addcmul_(c, peephole[-1]).sigmoid_()
    return o * c.tanh(), c


def _trace(
    values: Tensor,
    weight_hh: Tensor,
    peephole: Tensor,
    before: Tensor,
    memory: Tensor,
    d_outputs: Tensor,
    d_h: Tensor,
    d_c: Tensor,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of outputs and last state -> of the pre-activations (N, G*H), of their bias and of the peepholes.

    `d_h` and `d_c` (B, H) become the gradients of the first state.
    """
    gates = torch.empty_like(values, dtype=d_h.dtype)
    for step, size in reversed(list(_steps(sizes))):
        gradient = (d_outputs[step] + d_h[:size]).to(memory.dtype)
        gates[step], d_c[:size] = _retreat(values[step], peephole, before[step], memory[step], gradient, d_c[:size])
        d_h[:size] = _product(gates[step], weight_hh.T)
    *d_inward, _d_g, d_o = _gates(gates, memory)
    seen = [*((gate * before).sum(0) for gate in d_inward), (d_o * memory).sum(0)]
    return gates, gates.sum(0), torch.stack(seen)


def _retreat(
    values: Tensor, peephole: Tensor, before: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor
) -> tuple[Tensor, Tensor]:
    """The gates' values and c before and after a step, gradients of h and c -> of pre-activations and of c before."""
    *inward, g, o = _gates(values, c)
    seen = c.tanh()
    d_o = d_h * seen * o * (1 - o)
    d_c = d_c + d_h * o * (1 - seen * seen) + d_o * peephole[-1]
    d_inward = [d_c * (g if len(inward) == 2 else g - before), d_c * before][: len(inward)]  # of the gates' values
    d_inward = [gradient * gate * (1 - gate) for gradient, gate in zip(d_inward, inward, strict=True)]
    d_g = d_c * inward[0] * (1 - g * g)
    d_c = d_c * _forget(inward)
    for gradient, weight in zip(d_inward, peephole[:-1], strict=True):
        d_c = d_c + gradient * weight
    return torch.cat([*d_inward, d_g, d_o], 1), d_c


def _gates(rows: Tensor, c: Tensor) -> Sequence[Tensor]:
    """(B, G*H) -> i, f, g, o or i, g, o, each (B, H) as c."""
    return rows.chunk(rows.shape[1] // c.shape[1], 1)


def _forget(inward: Sequence[Tensor]) -> Tensor:
    """The forget gate of (i, f) or of (i,)."""
    return inward[1] if len(inward) == 2 else 1 - inward[0]


def _peepholes(peephole: Tensor | None, weight_hh: Tensor, wide: torch.dtype) -> Tensor:
    """Return the peepholes (P, H), zeros without any."""
    if peephole is not None:
        return peephole.to(wide).contiguous()
    size = weight_hh.shape[1]
    return weight_hh.new_zeros(len(weight_hh) // size - 1, size, dtype=wide)


def _native(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and native.loaded()


def _by_onednn(rows: Tensor) -> bool:
    """Return whether to call oneDNN explicitly: torch runs float32 on another library, at half the speed on AMD."""
    return ONEDNN and rows.device.type == "cpu" and rows.dtype == torch.float32


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows (N, K) and a weight (M, K) -> (N, M)."""
    if _by_onednn(rows):
        linear = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001  # what torch.compile calls; there is no public name
        product: Tensor = linear(rows, weight, bias, "none", [], "")
        return product
    return F.linear(rows, weight, bias)


def _steps(sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Yield the rows of each step as a slice, and their count."""
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        yield slice(end - size, end), size


def _shifted(first: Tensor, later: Tensor, sizes: Sequence[int]) -> Tensor:
    """The state after every step (N, H) and the first (B, H) -> the state before every step (N, H)."""
    if sizes[-1] == sizes[0]:
        return torch.cat([first, later[: len(later) - sizes[0]]])
    starts = (step.start for step, _ in _steps(sizes))
    still_running = (later[start : start + size] for start, size in zip(starts, sizes[1:], strict=False))
    return torch.cat([first, *still_running])


def _last(sizes: Sequence[int]) -> Tensor:
    """The row of each sequence's own last step, (B,)."""
    ended = [
        torch.arange(step.start + still_running, step.stop)
        for (step, size), still_running in zip(_steps(sizes), [*sizes[1:], 0], strict=True)
        if still_running < size
    ]
    none = torch.empty(0, dtype=torch.int64)
    return torch.cat([none, *ended[::-1]])  # the longest sequence, so the last to end, is the first
