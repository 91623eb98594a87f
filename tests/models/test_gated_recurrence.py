"""The recurrence is differentiated rightly, natively or not; a sequence may be cut anywhere, and reset."""

import pytest
import torch
from torch import Tensor

from app.models import gated_recurrence, native
from app.models.gated_recurrence import Block, BlockState, GatedRecurrence, GatedRecurrentLanguageModel

STEPS, BATCH, SIZE = 7, 3, 5


@pytest.fixture(params=["native", "torch"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(native, "loaded", lambda: False)
    elif not native.loaded():
        pytest.skip("no compiler")


def arguments(kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    wide = torch.promote_types(kind, torch.float32)
    z, c, _ = torch.randn(STEPS, BATCH, 3 * SIZE, dtype=kind).chunk(3, -1)  # as a block's: not contiguous
    keep = (torch.rand(STEPS, BATCH, 1) > 0.3).to(wide)
    return z.detach(), c.detach(), torch.randn(BATCH, SIZE, dtype=wide), keep


def model(kernel: int = 3, layers: int = 2) -> GatedRecurrentLanguageModel:
    torch.manual_seed(1)
    made = GatedRecurrentLanguageModel(
        vocabulary_size=20,
        embedding_size=6,
        width=8,
        layers=layers,
        hidden_size=SIZE,
        inner_size=7,
        kernel=kernel,
    ).double()
    for block in made.blocks:
        assert isinstance(block, Block)
        torch.nn.init.normal_(block.input.kernel)  # at first it would look at the step itself alone
    return made.eval()


def flat(state: list[BlockState]) -> list[Tensor]:
    return [part for block in state for part in block]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("resets", [False, True])
def test_gradients(resets: bool) -> None:
    z, c, h, keep = arguments()
    inputs = [part.requires_grad_() for part in (z, c, h)]
    assert torch.autograd.gradcheck(lambda z, c, h: GatedRecurrence.apply(z, c, h, keep if resets else None), inputs)


@pytest.mark.usefixtures("either")
def test_a_step_is_the_formula() -> None:
    z, c, h, keep = arguments()
    outputs = GatedRecurrence.apply(z, c, h, keep)
    for t in range(STEPS):
        h = (1 - z[t].sigmoid()) * h * keep[t] + z[t].sigmoid() * c[t]
        torch.testing.assert_close(outputs[t], h)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_native_loops_are_torchs(kind: torch.dtype) -> None:
    if not native.loaded():
        pytest.skip("no compiler")
    z, c, h, keep = arguments(kind)
    outputs, gradient = gated_recurrence._read(z, c, h, keep), torch.randn(STEPS, BATCH, SIZE)  # noqa: SLF001
    torch.testing.assert_close(torch.ops.seqserve.linear_read(z, c, h, keep), outputs)
    expected = gated_recurrence._trace(z, c, h, keep, outputs, gradient)  # noqa: SLF001
    torch.testing.assert_close(torch.ops.seqserve.linear_trace(z, c, h, keep, outputs, gradient), expected)


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_sequence_cut_anywhere_gives_the_same(kernel: int, cut: int) -> None:
    stack = model(kernel)
    tokens, resets = torch.randint(20, (STEPS, BATCH)), torch.rand(STEPS, BATCH) < 0.4
    whole, after = stack(tokens, stack.initial_state(BATCH), resets)
    first, state = stack(tokens[:cut], stack.initial_state(BATCH), resets[:cut])
    rest, state = stack(tokens[cut:], state, resets[cut:])
    torch.testing.assert_close(torch.cat([first, rest]), whole)
    torch.testing.assert_close(flat(state), flat(after))


def test_steps_one_at_a_time_give_the_same() -> None:
    stack = model(4)
    tokens, resets = torch.randint(20, (STEPS, BATCH)), torch.rand(STEPS, BATCH) < 0.4
    whole, _ = stack(tokens, stack.initial_state(BATCH), resets)
    state, steps = stack.initial_state(BATCH), []
    for t in range(STEPS):
        hidden, state = stack(tokens[t : t + 1], state, resets[t : t + 1])
        steps.append(hidden)
    torch.testing.assert_close(torch.cat(steps), whole)


def test_after_a_reset_nothing_before_it_counts() -> None:
    stack = model(4)
    tokens = torch.randint(20, (STEPS, 1))
    resets = torch.zeros(STEPS, 1, dtype=torch.bool)
    resets[3] = True
    reset, _ = stack(tokens, stack.initial_state(1), resets)
    fresh, _ = stack(tokens[3:], stack.initial_state(1))
    torch.testing.assert_close(reset[3:], fresh)
    carried, _ = stack(tokens, stack.initial_state(1))
    assert not torch.allclose(carried[3:], fresh)


def test_a_kernel_of_none_is_rejected() -> None:
    with pytest.raises(ValueError, match="kernel: expected 1 or more"):
        model(0)
