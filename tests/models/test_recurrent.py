"""The recurrent layers are torch's own LSTM, with a state that is carried and dropout that is locked."""

import pytest
import torch
from torch import Tensor, nn

from app.models.recurrent import LSTMLayer, Recurrent, locked_dropout

STEPS, BATCH, SIZE_IN, SIZE = 7, 3, 5, 4


def layer(**arguments: float) -> LSTMLayer:
    made = LSTMLayer(SIZE_IN, SIZE, **arguments).double()
    made.reset(0.8, forget_bias=1.0)
    return made


def stack(**arguments: float | bool) -> Recurrent:
    made = Recurrent(SIZE_IN, (6, 5, SIZE), **arguments).double()  # type: ignore[arg-type]
    made.reset(0.8, forget_bias=1.0)
    return made


def inputs(steps: int = STEPS) -> Tensor:
    return torch.randn(steps, BATCH, SIZE_IN, dtype=torch.float64)


def test_a_layer_is_torchs_lstm_forward_and_backward() -> None:
    ours, theirs = layer(), nn.LSTM(SIZE_IN, SIZE).double()
    weights = {"weight_ih_l0": ours.weight_ih, "weight_hh_l0": ours.weight_hh}
    biases = {"bias_ih_l0": ours.bias - 0.3, "bias_hh_l0": torch.full_like(ours.bias, 0.3)}  # their sum is what counts
    theirs.load_state_dict(weights | biases)
    x = inputs().requires_grad_()
    h, c = torch.randn(2, BATCH, SIZE, dtype=torch.float64)
    weight = torch.randn(STEPS, BATCH, SIZE, dtype=torch.float64)  # some cost that depends on every output

    found, found_after = ours(x, (h, c))
    (found_x,) = torch.autograd.grad((found * weight).sum() + found_after[1].sum(), x, retain_graph=True)
    ((found * weight).sum() + found_after[1].sum()).backward()
    expected, (expected_h, expected_c) = theirs(x, (h[None], c[None]))
    (expected_x,) = torch.autograd.grad((expected * weight).sum() + expected_c.sum(), x, retain_graph=True)
    ((expected * weight).sum() + expected_c.sum()).backward()

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_after, (expected_h[0], expected_c[0]))
    torch.testing.assert_close(found_x, expected_x)
    torch.testing.assert_close(ours.weight_ih.grad, theirs.weight_ih_l0.grad)
    torch.testing.assert_close(ours.weight_hh.grad, theirs.weight_hh_l0.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias_ih_l0.grad)


def test_a_layer_follows_the_equations_of_its_docstring() -> None:
    module = layer()
    (x,), h, c = inputs(steps=1), *torch.randn(2, BATCH, SIZE, dtype=torch.float64)
    i, f, g, o = (x @ module.weight_ih.T + h @ module.weight_hh.T + module.bias).chunk(4, dim=1)
    c_after = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h_after = o.sigmoid() * c_after.tanh()
    outputs, after = module(x[None], (h, c))
    torch.testing.assert_close(outputs[0], h_after)
    torch.testing.assert_close(after, (h_after, c_after))


@pytest.mark.parametrize("cut", range(1, STEPS))
def test_a_window_read_in_two_parts_is_the_window_read_at_once(cut: int) -> None:
    module, x = stack(), inputs()
    whole, after = module(x, module.initial_state(BATCH))
    first, between = module(x[:cut], module.initial_state(BATCH))
    second, after_parts = module(x[cut:], between)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(after_parts, after)


def test_reset_keeps_to_the_range_and_opens_the_forget_gate() -> None:
    module = LSTMLayer(50, 40)
    module.reset(0.05, forget_bias=2.0)
    for weight in (module.weight_ih, module.weight_hh):
        assert 0.049 < weight.abs().max() <= 0.05
        assert abs(weight.mean()) < 0.002
    i, f, g, o = module.bias.chunk(4)
    assert (f == 2.0).all()
    assert not torch.cat([i, g, o]).any()


def test_locked_dropout_keeps_one_mask_for_all_steps() -> None:
    dropped = locked_dropout(torch.ones(50, 8, 100), 0.4, training=True)
    assert (dropped == dropped[0]).all()
    assert not (dropped[0, 0] == dropped[0, 1]).all()  # each sequence has its own
    assert sorted(set(dropped.flatten().tolist())) == [0, pytest.approx(1 / 0.6)]  # so that the mean stays
    assert (dropped == 0).float().mean() == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize(("locked", "masks"), [(True, 1), (False, STEPS)])
def test_dropout_between_layers_draws_a_mask_a_window_or_one_a_step(locked: bool, masks: int) -> None:
    module = Recurrent(SIZE_IN, (64, SIZE), dropout=0.5, locked=locked)
    module.reset(0.8, forget_bias=1.0)
    seen: list[Tensor] = []
    module.layers[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    module(inputs().float(), module.initial_state(BATCH))
    zeros = seen[0][:, 0] == 0  # (T, H) of the first sequence
    assert len({tuple(step.tolist()) for step in zeros}) == masks


@pytest.mark.parametrize("arguments", [{"weight_drop": 0.5}, {"dropout": 0.5}, {"dropout": 0.5, "locked": False}])
def test_every_dropout_is_for_training_alone(arguments: dict[str, float | bool]) -> None:
    module, x = stack(**arguments), inputs()
    plain = stack()
    plain.load_state_dict(module.state_dict())
    state = module.initial_state(BATCH)
    module.eval()
    torch.testing.assert_close(module(x, state), plain(x, state), rtol=0, atol=0)
    module.train()
    first, second = module(x, state)[0], module(x, state)[0]
    assert not torch.allclose(first, second)


def test_weight_drop_drops_recurrent_weights_alone() -> None:
    module, x = layer(weight_drop=0.999_999), inputs()
    before = (torch.ones(BATCH, SIZE, dtype=torch.float64), torch.zeros(BATCH, SIZE, dtype=torch.float64))
    without = layer()
    without.load_state_dict(module.state_dict())
    nn.init.zeros_(without.weight_hh)
    torch.testing.assert_close(module(x, before), without(x, before))


def test_layers_may_differ_in_size_and_each_has_a_state() -> None:
    state = stack().initial_state(BATCH)
    assert [(h.shape, c.shape) for h, c in state] == [((BATCH, size), (BATCH, size)) for size in (6, 5, SIZE)]
    assert not any(part.any() for pair in state for part in pair)


def test_no_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_sizes: expected at least one layer, found none"):
        Recurrent(SIZE_IN, ())
