"""Readers of digits: what they are equal to, what they see of an image, what eight bits cost."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from app.models.digits import SIDE, ReNet, RowReader, patches
from app.models.recurrent import CELLS, Cell, Layer, Recurrent

LAYERS = [(4, 5), (7, 6)]  # 28 -> 7 -> 1
WAYS = ("layers", "reversed_layers")


def images(count: int = 3) -> Tensor:
    """(B, 28, 28) in 0..1, on the grid of pixels."""
    return torch.randint(256, (count, SIDE, SIDE)) / 255


def renet(cell: Cell = "gru", layers: list[tuple[int, int]] | None = None) -> ReNet:
    return ReNet(layers or LAYERS, cell=cell).eval()


READERS: dict[str, Callable[[], RowReader | ReNet]] = {
    **{cell: partial(renet, cell) for cell in CELLS},
    **{f"rows by {cell}": partial(RowReader, hidden_size=16, cell=cell) for cell in CELLS},
}


# the chapter's


def test_the_row_reader_is_the_chapters_classifier() -> None:
    model = RowReader()
    assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == {
        **{f"recurrent.{way}.0.weight_ih": (4 * 256, 28) for way in WAYS},
        **{f"recurrent.{way}.0.weight_hh": (4 * 256, 256) for way in WAYS},
        **{f"recurrent.{way}.0.bias": (4 * 256,) for way in WAYS},
        "output.weight": (10, 2 * 256),
        "output.bias": (10,),
    }


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, -2.5])
def test_the_bias_of_a_forget_gate_is_the_given_one_and_the_others_zero(forget_bias: float) -> None:
    lstm = RowReader(hidden_size=5, forget_bias=forget_bias).recurrent
    for way in WAYS:
        i, f, g, o = lstm.get_parameter(f"{way}.0.bias").chunk(4)
        assert (f == forget_bias).all()
        assert not torch.cat([i, g, o]).any()


def step(model: Recurrent, way: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The chapter's equations for one row of one image."""
    w_ih, w_hh, bias = (model.get_parameter(f"{way}.0.{name}") for name in ("weight_ih", "weight_hh", "bias"))
    i, f, g, o = (w_ih @ x + w_hh @ h + bias).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def test_the_row_reader_equals_a_loop_written_by_hand() -> None:
    model, image = RowReader(hidden_size=6), images(1)
    h = c = torch.zeros(6)
    for row in image[0]:
        h, c = step(model.recurrent, "layers", row, h, c)
    backwards, _ = step(model.recurrent, "reversed_layers", image[0, -1], torch.zeros(6), torch.zeros(6))
    expected = model.output(torch.cat([h, backwards]))
    torch.testing.assert_close(model(image)[0], expected)


def test_at_the_last_step_the_backward_direction_has_read_the_last_row_alone() -> None:
    model, image = RowReader(hidden_size=6), images(1)
    with torch.no_grad():
        model.output.weight[:, :6] = 0  # what the forward direction says
    before = model(image)
    image[:, :-1] = 0
    torch.testing.assert_close(model(image), before)
    image[:, -1] = 0
    assert not torch.allclose(model(image), before)


# ReNet


def test_patches_are_read_from_left_to_right_each_from_its_upper_left_corner() -> None:
    plane = torch.arange(16).reshape(4, 4, 1, 1)
    cut = patches(plane, 2)  # (columns, rows, B, 4)
    assert cut.squeeze(2).tolist() == [[[0, 1, 4, 5], [8, 9, 12, 13]], [[2, 3, 6, 7], [10, 11, 14, 15]]]


def test_patches_keep_images_apart_and_channels_together() -> None:
    plane = torch.arange(4 * 4 * 2 * 3).reshape(4, 4, 2, 3)
    cut = patches(plane, 2)
    assert cut.shape == (2, 2, 2, 12)
    assert cut[1, 0, 1].tolist() == torch.cat([plane[0, 2, 1], plane[0, 3, 1], plane[1, 2, 1], plane[1, 3, 1]]).tolist()


def swept(model: ReNet, image: Tensor) -> Tensor:
    """One layer, written by hand: patches of one image, each row of them from both ends, then each column."""
    ((side, hidden),) = model.layers
    count = SIDE // side
    cut = image.reshape(count, side, count, side).transpose(1, 2).reshape(count, count, side * side)
    across, down = torch.empty(count, count, 2 * hidden), torch.empty(count, count, 2 * hidden)
    for row in range(count):
        across[row] = model.across[0](cut[row].unsqueeze(1))[0].squeeze(1)
    for column in range(count):
        down[:, column] = model.down[0](across[:, column].unsqueeze(1))[0].squeeze(1)
    logits: Tensor = model.output(down.flatten())
    return logits


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_reads_each_row_of_patches_then_each_column(cell: Cell) -> None:
    model, batch = renet(cell, [(7, 5)]), images(2)
    torch.testing.assert_close(model(batch), torch.stack([swept(model, image) for image in batch]))


@pytest.mark.parametrize("cell", CELLS)
def test_a_pixel_anywhere_reaches_every_place_after_one_layer(cell: Cell) -> None:
    model, seen = renet(cell, [(7, 5)]), list[Tensor]()
    model.output.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    image = images(1)
    model(image)
    for row, column in ((0, 0), (0, 27), (27, 0), (27, 27), (13, 14)):
        changed = image.clone()
        changed[0, row, column] = 1 - changed[0, row, column]
        model(changed)
        changes = (seen[-1] != seen[0]).reshape(4, 4, 10)  # by place
        assert changes.any(-1).all(), (row, column)


@pytest.mark.parametrize("cell", CELLS)
def test_every_line_is_read_from_both_ends(cell: Cell) -> None:
    model = renet(cell)
    assert all(layer.bidirectional for layer in (*model.across, *model.down))
    for sweeps, sizes in ((model.across, [16, 10 * 49]), (model.down, [10, 12])):
        weights = [sweep.get_parameter("reversed_layers.0.weight_ih") for sweep in sweeps]
        assert [weight.shape[1] for weight in weights] == sizes


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("eight_bit", [False, True])
def test_an_image_is_read_the_same_alone_as_among_others(reader: str, eight_bit: bool) -> None:
    model = READERS[reader]()
    model.eight_bit = eight_bit
    batch = images(4)
    alone = torch.cat([model(image.unsqueeze(0)) for image in batch])
    torch.testing.assert_close(model(batch), alone)


@pytest.mark.parametrize("layers", [[(3, 5)], [(2, 5), (3, 5)], [(28, 5), (2, 5)]])
def test_patches_that_do_not_fill_the_plane_are_rejected(layers: list[tuple[int, int]]) -> None:
    side = {3: 28, 2: 14, 28: 1}[layers[0][0]] if len(layers) > 1 else 28
    with pytest.raises(ValueError, match=f"patches: expected sides that divide {side}, found {layers[-1][0]}"):
        ReNet(layers)


def test_dropout_is_for_training_alone() -> None:
    model, batch = ReNet(LAYERS, dropout=0.5), images()
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


def test_there_is_no_convolution() -> None:
    kinds = {type(module) for module in renet().modules()}
    assert kinds == {ReNet, nn.ModuleList, Recurrent, Layer, nn.Dropout, nn.Linear}


# eight bits


@pytest.mark.parametrize("reader", READERS)
def test_eight_bits_cost_little_but_something(reader: str) -> None:
    model, batch = READERS[reader](), images(8)
    exact = model(batch)
    model.eight_bit = True
    rough = model(batch)
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.03, rtol=0)


def whole(values: Tensor, least: int, most: int) -> bool:
    return torch.equal(values, values.round()) and least <= int(values.min()) <= int(values.max()) <= most


@pytest.mark.parametrize("cell", CELLS)
def test_all_that_enters_a_product_is_a_whole_number_of_eight_bits(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    model, entered, linear = renet(cell), list[tuple[Tensor, Tensor]](), nn.functional.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None:  # the layer of the classes has one
            entered.append((x, weight))
        return linear(x, weight, bias)

    monkeypatch.setattr("app.models.digits.F.linear", watched)
    model.eight_bit = True
    model(images())
    pixels = [x for x, _ in entered if x.shape[-1] == 16]
    assert len(pixels) == 2  # of either direction
    assert all(whole(x, 0, 255) for x in pixels)
    hidden = [x for x, _ in entered if x.shape[-1] != 16]
    assert len(hidden) == 2 * (
        7 + 1 + 7 + 1 + 1 + 1 + 1
    )  # each step of each sweep, and what the later sweeps are given
    assert all(whole(x, -128, 127) for x in hidden)
    assert all(whole(weight, -127, 127) for _, weight in entered)


def test_a_row_of_weights_without_any_is_no_division_by_nothing() -> None:
    model = RowReader(hidden_size=4)
    nn.init.zeros_(model.recurrent.get_parameter("layers.0.weight_hh"))
    model.eight_bit = True
    assert model(images()).isfinite().all()


@pytest.mark.parametrize(("cell", "kernel"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_weights_of_a_reader_on_torchs_own_cells_are_still_read(cell: Cell, kernel: type[nn.LSTM | nn.GRU]) -> None:
    model, theirs = renet(cell), kernel(16, 5, bidirectional=True)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("across.0.")}
    model.load_state_dict(weights | {f"across.0.{name}": value for name, value in theirs.state_dict().items()})
    inputs = torch.rand(7, 3, 16)
    torch.testing.assert_close(model.across[0](inputs)[0], theirs(inputs)[0])
