"""The recurrent layers are torch's and ONNX Runtime's: states are carried, batches may be ragged, dropout is locked."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from app.models import native
from app.models.recurrent import CELLS, GATES, PEEPHOLES, Cell, Layer, LayerState, Recurrent, locked_dropout

STEPS, BATCH, SIZE_IN, SIZE = 7, 3, 5, 4
LENGTHS = [4, 7, 1]

every_cell = pytest.mark.parametrize("cell", CELLS)
both_ways = pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "two directions"])
ragged = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["even", "ragged"])


def layer(cell: Cell = "lstm", *, weight_drop: float = 0.0) -> Layer:
    made = Layer(SIZE_IN, SIZE, cell=cell, weight_drop=weight_drop).double()
    made.reset(0.8, forget_bias=1.0)
    draw_peepholes(made, 0.8)
    return made


def stack(cell: Cell = "lstm", sizes: tuple[int, ...] = (6, 5, SIZE), **arguments: float | bool) -> Recurrent:
    made = Recurrent(SIZE_IN, sizes, cell=cell, **arguments).double()  # type: ignore[arg-type]
    made.reset(0.8, forget_bias=1.0)
    for name, parameter in made.named_parameters():
        if "bias" in name:  # zeros would hide one that is left out
            nn.init.uniform_(parameter, -0.8, 0.8)
    draw_peepholes(made, 0.8)
    return made


def draw_peepholes(module: nn.Module, initial_range: float) -> None:
    """Random biases and peepholes: zeros would hide one that is left out."""
    for name, parameter in module.named_parameters():
        if name.endswith("peephole"):
            nn.init.uniform_(parameter, -initial_range, initial_range)


def inputs(steps: int = STEPS) -> Tensor:
    return torch.randn(steps, BATCH, SIZE_IN, dtype=torch.float64)


def some_state(module: Recurrent) -> list[LayerState]:
    return [tuple(torch.randn_like(part) for part in parts) for parts in module.initial_state(BATCH)]


def as_lengths(lengths: list[int] | None) -> Tensor | None:
    return None if lengths is None else torch.tensor(lengths)


def flat(outputs: Tensor, state: list[LayerState]) -> tuple[Tensor, ...]:
    return (outputs, *(part for parts in state for part in parts))


# The cells that torch has.

TORCHS: dict[Cell, type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def torchs(module: Recurrent) -> nn.RNN | nn.LSTM | nn.GRU:
    """Return the module's single layer as torch's own class."""
    theirs = TORCHS[module.cell](SIZE_IN, SIZE, bidirectional=module.bidirectional).double()
    ways = {"_l0": module.layers, "_l0_reverse": module.reversed_layers}
    with torch.no_grad():
        for suffix, (ours,) in list(ways.items())[: 1 + module.bidirectional]:
            for name in ("weight_ih", "weight_hh"):
                theirs.get_parameter(name + suffix).copy_(ours.get_parameter(name))
            recurrent_bias = torch.zeros_like(ours.get_parameter("bias"))
            if module.cell == "gru":
                recurrent_bias[-SIZE:] = ours.get_parameter("bias_hn")
            theirs.get_parameter("bias_ih" + suffix).copy_(ours.get_parameter("bias"))
            theirs.get_parameter("bias_hh" + suffix).copy_(recurrent_bias)
    return theirs


@ragged
@both_ways
@pytest.mark.parametrize("cell", TORCHS)
def test_a_layer_is_torchs_forward_and_backward(cell: Cell, bidirectional: bool, lengths: list[int] | None) -> None:
    ours = stack(cell, (SIZE,), bidirectional=bidirectional)
    theirs = torchs(ours)
    x, (state,) = inputs(), some_state(ours)
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    before = tuple(part.view(-1, BATCH, SIZE) for part in state)
    hx = before if cell == "lstm" else before[0]

    found, (found_after,) = ours(ours_x, [state], as_lengths(lengths))
    if lengths is None:
        expected, after = theirs(theirs_x, hx)
    else:
        packed, after = theirs(pack_padded_sequence(theirs_x, torch.tensor(lengths), enforce_sorted=False), hx)
        expected, _ = pad_packed_sequence(packed)
    expected_after = after if cell == "lstm" else (after,)
    weight = torch.randn_like(expected)  # some cost that depends on every output
    ((found * weight).sum() + sum(part.square().sum() for part in found_after)).backward()
    ((expected * weight).sum() + sum(part.square().sum() for part in expected_after)).backward()

    torch.testing.assert_close(found, expected)
    for ours_part, theirs_part in zip(found_after, expected_after, strict=True):
        torch.testing.assert_close(ours_part.view_as(theirs_part), theirs_part)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad)
    one = ours.layers[0]
    for name, their_name in (("weight_ih", "weight_ih_l0"), ("weight_hh", "weight_hh_l0"), ("bias", "bias_ih_l0")):
        torch.testing.assert_close(one.get_parameter(name).grad, theirs.get_parameter(their_name).grad)


# The cells that torch lacks.


def peephole_step(module: Layer, x: Tensor, h: Tensor, c: Tensor) -> LayerState:
    i, f, g, o = (x @ module.weight_ih.T + h @ module.weight_hh.T + module.bias).chunk(4, dim=1)
    p_i, p_f, p_o = module.get_parameter("peephole")
    i, f = (i + p_i * c).sigmoid(), (f + p_f * c).sigmoid()
    c_after = f * c + i * g.tanh()
    return (o + p_o * c_after).sigmoid() * c_after.tanh(), c_after


def cifg_step(module: Layer, x: Tensor, h: Tensor, c: Tensor) -> LayerState:
    i, g, o = (x @ module.weight_ih.T + h @ module.weight_hh.T + module.bias).chunk(3, dim=1)
    c_after = (1 - i.sigmoid()) * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c_after.tanh(), c_after


def peephole_cifg_step(module: Layer, x: Tensor, h: Tensor, c: Tensor) -> LayerState:
    i, g, o = (x @ module.weight_ih.T + h @ module.weight_hh.T + module.bias).chunk(3, dim=1)
    p_i, p_o = module.get_parameter("peephole")
    i = (i + p_i * c).sigmoid()
    c_after = (1 - i) * c + i * g.tanh()
    return (o + p_o * c_after).sigmoid() * c_after.tanh(), c_after


Step = Callable[[Layer, Tensor, Tensor, Tensor], LayerState]
STEP: dict[Cell, Step] = {"peephole": peephole_step, "cifg": cifg_step, "peephole-cifg": peephole_cifg_step}


@pytest.mark.parametrize("cell", STEP)
def test_a_layer_follows_the_equations_of_its_docstring(cell: Cell) -> None:
    module = layer(cell)
    x, h, c = inputs(), *torch.randn(2, BATCH, SIZE, dtype=torch.float64)
    state: LayerState = (h, c)
    expected = []
    for row in x:
        state = STEP[cell](module, row, *state)
        expected.append(state[0])
    outputs, after = module(x, (h, c))
    torch.testing.assert_close(outputs, torch.stack(expected))
    torch.testing.assert_close(after, state)


@ragged
@both_ways
@every_cell
def test_gradients_are_those_of_finite_differences(cell: Cell, bidirectional: bool, lengths: list[int] | None) -> None:
    module = stack(cell, (2,), bidirectional=bidirectional)
    names, parameters = zip(*module.named_parameters(), strict=True)
    (state,) = some_state(module)
    x = torch.randn(STEPS, BATCH, SIZE_IN, dtype=torch.float64)

    def read(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        before, weights = rest[: len(state)], dict(zip(names, rest[len(state) :], strict=True))
        return flat(*functional_call(module, weights, (x, [before], as_lengths(lengths))))

    assert torch.autograd.gradcheck(read, [one.detach().requires_grad_() for one in (x, *state, *parameters)])


@pytest.mark.parametrize("cell", STEP)
def test_a_cost_on_the_last_state_alone_reaches_every_weight(cell: Cell) -> None:
    module = stack(cell)
    _, after = module(inputs(), None, torch.tensor(LENGTHS))
    after[-1][1].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("cell", STEP)
def test_a_gradient_can_be_computed_twice(cell: Cell) -> None:
    module, x = stack(cell), inputs().requires_grad_()
    outputs, _ = module(x)
    first, second = (torch.autograd.grad(outputs.square().sum(), x, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@both_ways
@every_cell
def test_bfloat16_is_float32_to_its_precision(cell: Cell, bidirectional: bool, autocast: bool) -> None:
    module, x = stack(cell, bidirectional=bidirectional).float(), inputs().float()
    expected, _ = module(x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), module.layers[0].get_parameter("weight_hh"))
    if not autocast:
        module, x = module.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, _ = module(x)
    (gradient,) = torch.autograd.grad(found.float().square().sum(), module.layers[0].get_parameter("weight_hh"))
    assert found.dtype == (torch.float32 if autocast and cell == "gru" else torch.bfloat16)  # torch's GRU widens
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)
    assert (gradient.float() - expected_gradient).norm() < 0.05 * expected_gradient.norm()


# Their compiled kernel.


def read_and_trace(module: Recurrent, x: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """Outputs, states after, and the gradients of everything."""
    x = x.clone().requires_grad_()
    state = [tuple(torch.full_like(part, 0.3).requires_grad_() for part in parts) for parts in module.initial_state(9)]
    found = flat(*module(x, state, lengths))
    cost = sum(part.double().sin().sum() for part in found)
    assert isinstance(cost, Tensor)
    return [*found, *torch.autograd.grad(cost, [x, *(part for parts in state for part in parts), *module.parameters()])]


@pytest.mark.parametrize("lengths", [None, [6, 1, 7, 7, 3, 2, 7, 5, 4]], ids=["even", "ragged"])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("cell", STEP)
def test_the_compiled_kernel_computes_what_torchs_operations_do(
    cell: Cell, kind: torch.dtype, tolerance: float, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native.loaded():
        pytest.skip("there is no C++ compiler here")
    module = Recurrent(SIZE_IN, (37, 21), cell=cell, bidirectional=True)  # sizes that fill neither vectors nor tiles
    module.reset(0.3, forget_bias=1.0)
    draw_peepholes(module, 0.3)
    module, x = module.to(kind), torch.randn(STEPS, 9, SIZE_IN).to(kind)
    compiled = read_and_trace(module, x, as_lengths(lengths))
    monkeypatch.setattr(native, "loaded", lambda: False)
    for found, expected in zip(compiled, read_and_trace(module, x, as_lengths(lengths)), strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() <= tolerance * expected.norm()


# ONNX Runtime's operators: what is served.

OPERATOR: dict[Cell, str] = {"rnn": "RNN", "gru": "GRU"}  # LSTM otherwise
ROWS: dict[Cell, str] = {
    "rnn": "h", "lstm": "ifgo", "peephole": "ifgo", "cifg": "igo", "gru": "rzn", "peephole-cifg": "igo"
}  # fmt: skip
THEIR_ROWS = {"RNN": "h", "LSTM": "iofg", "GRU": "zrn"}
OPERATOR_TOLERANCE = 2e-6  # float32, outputs within -1..1 after seven steps

Array = npt.NDArray[np.float32]


def reordered(blocks: Tensor, ours: str, theirs: str) -> Tensor:
    """Row blocks as the operator orders them; one that the cell lacks is noise, so that it must be unused."""
    named = dict(zip(ours, blocks.chunk(len(ours)), strict=True))
    return torch.cat([named[name] if name in named else torch.randn_like(named[ours[0]]) for name in theirs])


def operator_weights(ours: nn.Module, operator: str) -> list[Tensor]:
    """W, R, B and P of one direction."""
    assert isinstance(ours, Layer)
    rows, their_rows = ROWS[ours.cell], THEIR_ROWS[operator]
    w, r, bias = (reordered(part, rows, their_rows) for part in (ours.weight_ih, ours.weight_hh, ours.bias))
    recurrent_bias = torch.zeros_like(bias)
    if ours.bias_hn is not None:
        recurrent_bias[-ours.hidden_size :] = ours.bias_hn
    seen = (
        []
        if ours.peephole is None
        else [reordered(ours.peephole.flatten(), "io" if "cifg" in ours.cell else "ifo", "iof")]
    )
    return [w, r, torch.cat([bias, recurrent_bias]), *seen]


def operators(module: Recurrent, x: Tensor, state: LayerState, lengths: list[int]) -> list[Array]:
    """Y (T, B, D*H), Y_h (D, B, H) and, if the operator has it, Y_c."""
    operator = OPERATOR.get(module.cell, "LSTM")
    ways = [layers.get_submodule("0") for layers in (module.layers, module.reversed_layers) if len(layers)]
    weights = [torch.stack(parts) for parts in zip(*(operator_weights(way, operator) for way in ways), strict=True)]
    feed: dict[str, npt.NDArray[Any]] = dict(zip("WRBP", (part.detach().numpy() for part in weights), strict=False))
    feed |= {"X": x.numpy(), "lens": np.array(lengths, np.int32)}
    before = (part.view(len(ways), BATCH, SIZE).numpy() for part in state)
    feed |= dict(zip(("h", "c"), before, strict=False))
    names = [name if name in feed else "" for name in ("X", "W", "R", "B", "lens", "h", "c", "P")]
    while not names[-1]:
        names.pop()
    after = ["Y", "Y_h", "Y_c"][: 1 + len(state)]
    attributes: dict[str, Any] = {"direction": "bidirectional" if module.bidirectional else "forward"}
    if "cifg" in module.cell:
        attributes["input_forget"] = 1
    if module.cell == "gru":
        attributes["linear_before_reset"] = 1
    node = helper.make_node(operator, names, after, hidden_size=SIZE, **attributes)
    kinds = {"lens": TensorProto.INT32}
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), value.shape) for n, value in feed.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (3 + (name == "Y"))) for name in after],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *last = session.run(None, feed)
    return [y.transpose(0, 2, 1, 3).reshape(STEPS, BATCH, -1), *last]


@pytest.mark.parametrize("lengths", [[STEPS] * BATCH, LENGTHS], ids=["even", "ragged"])
@both_ways
@every_cell
def test_a_layer_is_onnx_runtimes_operator(cell: Cell, bidirectional: bool, lengths: list[int]) -> None:
    module, x = stack(cell, (SIZE,), bidirectional=bidirectional).float(), inputs().float()
    (state,) = some_state(module)
    outputs, (after,) = module(x, [state], torch.tensor(lengths))
    expected, *expected_after = (torch.from_numpy(part) for part in operators(module, x, state, lengths))
    torch.testing.assert_close(outputs, expected, rtol=0, atol=OPERATOR_TOLERANCE)
    for part, expected_part in zip(after, expected_after, strict=True):
        torch.testing.assert_close(part.view_as(expected_part), expected_part, rtol=0, atol=OPERATOR_TOLERANCE)


# States and ragged batches.


@every_cell
@pytest.mark.parametrize("cut", range(1, STEPS))
def test_a_window_read_in_two_parts_is_the_window_read_at_once(cut: int, cell: Cell) -> None:
    module, x = stack(cell), inputs()
    whole, after = module(x, module.initial_state(BATCH))
    first, between = module(x[:cut])
    second, after_parts = module(x[cut:], between)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(after_parts, after)


@both_ways
@every_cell
def test_a_ragged_batch_is_each_sequence_read_alone(cell: Cell, bidirectional: bool) -> None:
    module, x = stack(cell, bidirectional=bidirectional), inputs()
    state = some_state(module)
    outputs, after = module(x, state, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        before = [tuple(part[..., row : row + 1, :] for part in parts) for parts in state]
        alone, alone_after = module(x[:length, row : row + 1], before)
        torch.testing.assert_close(outputs[:length, row : row + 1], alone)
        assert not outputs[length:, row].any()
        for parts, alone_parts in zip(after, alone_after, strict=True):
            for part, alone_part in zip(parts, alone_parts, strict=True):
                torch.testing.assert_close(part[..., row : row + 1, :], alone_part)


@both_ways
@every_cell
def test_what_follows_a_sequences_end_changes_nothing(cell: Cell, bidirectional: bool) -> None:
    module, x = stack(cell, bidirectional=bidirectional), inputs()
    other = torch.where(torch.arange(STEPS)[:, None, None] < torch.tensor(LENGTHS)[:, None], x, torch.nan)
    lengths = torch.tensor(LENGTHS)
    torch.testing.assert_close(module(other, None, lengths), module(x, None, lengths), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([4, 0, 2], "lengths: expected 1 to 7 steps, found 0 to 4"),
        ([4, 8, 2], "lengths: expected 1 to 7 steps, found 2 to 8"),
        ([4, 7], r"lengths: expected one for each of 3 sequences, found a shape of \(2,\)"),
    ],
)
def test_lengths_that_are_none_are_rejected(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack()(inputs(), None, torch.tensor(lengths))


@both_ways
@every_cell
def test_layers_may_differ_in_size_and_each_has_a_state(cell: Cell, bidirectional: bool) -> None:
    state = stack(cell, bidirectional=bidirectional).initial_state(BATCH)
    kept, ways = (1 if cell in ("rnn", "gru") else 2), ((2,) if bidirectional else ())
    assert [[part.shape for part in parts] for parts in state] == [
        [(*ways, BATCH, size)] * kept for size in (6, 5, SIZE)
    ]
    assert not any(part.any() for parts in state for part in parts)


# Parameters.


@every_cell
def test_a_layers_parameters_are_named_and_shaped_as_checkpoints_have_them(cell: Cell) -> None:
    expected = {
        "layers.0.weight_ih": (GATES[cell] * SIZE, SIZE_IN),
        "layers.0.weight_hh": (GATES[cell] * SIZE, SIZE),
        "layers.0.bias": (GATES[cell] * SIZE,),
    }
    if cell == "gru":
        expected["layers.0.bias_hn"] = (SIZE,)
    if cell in PEEPHOLES:
        expected["layers.0.peephole"] = (PEEPHOLES[cell], SIZE)
    module = stack(cell, (SIZE,))
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == expected


@every_cell
def test_reset_keeps_to_the_range_and_opens_the_forget_gate(cell: Cell) -> None:
    module = Layer(50, 40, cell=cell)
    module.reset(0.05, forget_bias=2.0)
    for name, parameter in module.named_parameters():
        if name.startswith("weight"):
            assert 0.03 < parameter.abs().max() <= 0.05
    biases = dict(zip(ROWS[cell], module.bias.chunk(GATES[cell]), strict=True))
    opened = {"lstm": ("f", 2.0), "peephole": ("f", 2.0), "cifg": ("i", -2.0), "peephole-cifg": ("i", -2.0)}
    if cell in opened:
        gate, bias = opened[cell]
        assert (biases.pop(gate) == bias).all()
    assert not any(bias.any() for bias in biases.values())


@pytest.mark.parametrize(("cell", "without"), [("peephole", "lstm"), ("peephole-cifg", "cifg")])
def test_a_cell_with_peepholes_starts_as_the_one_without(cell: Cell, without: Cell) -> None:
    modules = Layer(SIZE_IN, SIZE, cell=cell), Layer(SIZE_IN, SIZE, cell=without)
    for module in modules:
        torch.manual_seed(3)
        module.reset(0.8, forget_bias=1.0)
    x, state = inputs().float(), tuple(torch.randn(BATCH, SIZE) for _ in range(2))
    torch.testing.assert_close(modules[0](x, state), modules[1](x, state))


def test_an_unknown_cell_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"cell: expected one of rnn, lstm, .*, found 'elman'"):
        Recurrent(SIZE_IN, (SIZE,), cell="elman")  # type: ignore[arg-type]


def test_no_layers_are_rejected() -> None:
    with pytest.raises(ValueError, match="hidden_sizes: expected at least one layer, found none"):
        Recurrent(SIZE_IN, ())


# Dropout.


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


@every_cell
@pytest.mark.parametrize("arguments", [{"weight_drop": 0.5}, {"dropout": 0.5}, {"dropout": 0.5, "locked": False}])
def test_every_dropout_is_for_training_alone(arguments: dict[str, float | bool], cell: Cell) -> None:
    module, x = stack(cell, **arguments), inputs()  # type: ignore[arg-type]
    plain = stack(cell)
    plain.load_state_dict(module.state_dict())
    module.eval()
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)
    module.train()
    first, second = module(x)[0], module(x)[0]
    assert not torch.allclose(first, second)


@every_cell
def test_weight_drop_drops_recurrent_weights_alone(cell: Cell) -> None:
    module, x = layer(cell, weight_drop=0.999_999), inputs()
    without = layer(cell)
    without.load_state_dict(module.state_dict())
    nn.init.zeros_(without.weight_hh)
    before = tuple(torch.ones(BATCH, SIZE, dtype=torch.float64) for _ in range(1 if cell in ("rnn", "gru") else 2))
    torch.testing.assert_close(module(x, before), without(x, before))


@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_of_none_is_read_as_nothing(cell: Cell) -> None:
    model = Recurrent(3, [8], cell=cell)
    model.reset(0.1, 1.0)
    outputs, after = model(torch.zeros(3, 0, 3))
    assert outputs.shape == (3, 0, 8)
    assert all(part.shape == (0, 8) for part in after[0])
