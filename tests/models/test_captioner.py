"""The captioner: where the image enters, what a state holds, that whole captions and single steps agree."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from app.models.captioner import Captioner, Inject
from app.models.recurrent import CELLS, GATES, STATE_VECTORS, Cell, Recurrent

MODES = get_args(Inject)
HIDDEN = 6


def captioner(cell: Cell = "lstm", inject: Inject = "chapter", **changes: Any) -> Captioner:
    sizes: dict[str, Any] = {"vocabulary_size": 11, "feature_size": 5, "embedding_size": 4, "hidden_size": HIDDEN}
    model = Captioner(cell=cell, inject=inject, **(sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)  # so that every weight matters
    return model


def by_steps(model: Captioner, features: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities (B, T, V) by way of the decoding interface."""
    state, said = model.begin(features), []
    for column in tokens.T:
        log_probabilities, state = model.step(column, state)
        said.append(log_probabilities)
    return torch.stack(said, 1)


# two interfaces


@pytest.mark.parametrize("inject", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_whole_captions_and_single_steps_agree(cell: Cell, inject: Inject) -> None:
    model = captioner(cell, inject)
    features, tokens = torch.rand(3, 5), torch.randint(11, (3, 7))
    whole = model(features, tokens).log_softmax(-1)
    torch.testing.assert_close(by_steps(model, features, tokens), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("inject", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_caption_of_one_word_can_be_read(cell: Cell, inject: Inject) -> None:
    model = captioner(cell, inject)
    features, tokens = torch.rand(2, 5), torch.randint(11, (2, 1))
    torch.testing.assert_close(by_steps(model, features, tokens), model(features, tokens).log_softmax(-1))


@pytest.mark.parametrize("inject", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_does_not_depend_on_its_neighbours(cell: Cell, inject: Inject) -> None:
    model = captioner(cell, inject)
    features, tokens = torch.rand(3, 5), torch.randint(11, (3, 4))
    torch.testing.assert_close(model(features[1:2], tokens[1:2]), model(features, tokens)[1:2])


@pytest.mark.parametrize("inject", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_is_one_flat_row_that_ends_with_the_input_of_the_output_layer(cell: Cell, inject: Inject) -> None:
    model = captioner(cell, inject)
    state = model.begin(torch.rand(2, 5))
    image = GATES[cell] * HIDDEN if inject == "chapter" else 0
    assert state.shape == (2, model.state_size) == (2, image + STATE_VECTORS[cell] * HIDDEN)
    said, state = model.step(torch.tensor([0, 3]), state)
    torch.testing.assert_close(said, model.output(state[:, -HIDDEN:]).log_softmax(-1))


# the chapter's formula


def test_the_chapters_rnn_is_the_formula_written_out() -> None:
    model = captioner("rnn")
    features, tokens = torch.rand(2, 5), torch.randint(11, (2, 4))
    u, w, bias = (model.recurrent.get_parameter(f"layers.0.{name}") for name in ("weight_ih", "weight_hh", "bias"))
    v = model.image.weight
    state = torch.zeros(2, HIDDEN)
    for step in range(4):
        words = model.embedding(tokens[:, step])
        term = features @ v.T if step == 0 else 0
        state = torch.tanh(words @ u.T + state @ w.T + term + bias)
        torch.testing.assert_close(model(features, tokens)[:, step], model.output(state))


@pytest.mark.parametrize("cell", CELLS)
def test_the_image_term_is_the_same_as_an_input_that_is_there_at_the_first_step_only(cell: Cell) -> None:
    """The cell alone, given [x; X] at the first step and [x; 0] after it, with the matrix [U V]."""
    model = captioner(cell)
    features, tokens = torch.rand(3, 5), torch.randint(11, (3, 4))
    reference = Recurrent(4 + 5, [HIDDEN], cell=cell)
    weights = model.recurrent.state_dict()
    weights["layers.0.weight_ih"] = torch.cat([weights["layers.0.weight_ih"], model.image.weight.detach()], 1)
    reference.load_state_dict(weights)
    images = torch.zeros(3, 4, 5)
    images[:, 0] = features
    hidden, _ = reference(torch.cat([model.embedding(tokens), images], -1).transpose(0, 1))  # (T, B, H)
    torch.testing.assert_close(model(features, tokens), model.output(hidden.transpose(0, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_the_image_reaches_the_first_pre_activation_and_no_later_one_directly(cell: Cell) -> None:
    model = captioner(cell)
    features = torch.rand(2, 5)
    started = model.begin(features)
    term = GATES[cell] * HIDDEN
    torch.testing.assert_close(started[:, :term], features @ model.image.weight.T)
    assert not started[:, term:].any()  # S_0 = 0

    state = started
    for word in (0, 4, 2):
        _, state = model.step(torch.tensor([word, word]), state)
        assert not state[:, :term].any()  # used up: what a later step sees of the image is S_{t-1} alone
        other = state.clone()
        other[:, :term] = 0
        torch.testing.assert_close(model.step(torch.tensor([1, 1]), state), model.step(torch.tensor([1, 1]), other))


@pytest.mark.parametrize("cell", CELLS)
def test_with_the_recurrence_cut_the_image_changes_the_first_word_alone(cell: Cell) -> None:
    model = captioner(cell)
    with torch.no_grad():
        model.recurrent.get_parameter("layers.0.weight_hh").zero_()
        bias = model.recurrent.get_parameter("layers.0.bias")
        if cell == "peephole":  # its i sees the old c
            model.recurrent.get_parameter("layers.0.peephole").zero_()
        if cell in ("cifg", "peephole-cifg"):  # nothing of c is kept where all is new
            bias[:HIDDEN] = math.inf
        elif cell != "rnn":  # nor of c behind a shut f, nor of h behind a shut z
            bias[HIDDEN : 2 * HIDDEN] = -math.inf
    tokens = torch.randint(11, (1, 5)).expand(2, -1)
    one, other = model(torch.rand(2, 5), tokens)
    assert not torch.allclose(one[0], other[0])
    torch.testing.assert_close(one[1:], other[1:])


@pytest.mark.parametrize("cell", CELLS)
def test_the_image_moves_every_gate(cell: Cell) -> None:
    model = captioner(cell)
    assert model.image.weight.shape == (GATES[cell] * HIDDEN, 5)
    features, tokens = torch.rand(1, 5), torch.tensor([[0, 1]])
    before = model(features, tokens)
    for gate in range(GATES[cell]):
        changed = captioner(cell)
        changed.load_state_dict(model.state_dict())
        with torch.no_grad():
            changed.image.weight[gate * HIDDEN : (gate + 1) * HIDDEN] += 1
        moved = not torch.allclose(changed(features, tokens), before)
        forget = cell in ("lstm", "peephole") and gate == 1
        assert moved == (not forget), gate  # it has no c to forget yet


# the other ways in


@pytest.mark.parametrize("cell", CELLS)
def test_init_inject_starts_the_state_from_the_image(cell: Cell) -> None:
    model = captioner(cell, "init")
    features = torch.rand(2, 5)
    torch.testing.assert_close(model.begin(features), torch.tanh(model.image(features)))


@pytest.mark.parametrize("cell", CELLS)
def test_pre_inject_reads_the_image_as_the_first_word(cell: Cell) -> None:
    model = captioner(cell, "pre")
    features = torch.rand(2, 5)
    _, ((h, *_),) = model.recurrent(model.image(features)[None])
    torch.testing.assert_close(model.begin(features)[:, -HIDDEN:], h)


# sizes and dropout


def test_a_tied_output_layer_is_the_embedding() -> None:
    model = captioner("gru", "init", tied=True, embedding_size=HIDDEN)
    assert model.output.weight is model.embedding.weight


def test_a_tied_model_of_two_sizes_is_rejected() -> None:
    with pytest.raises(ValueError, match="tied: expected hidden_size of the embedding's 4, found 6"):
        captioner(tied=True)


@pytest.mark.parametrize("dropout", ["feature_dropout", "input_dropout", "output_dropout"])
def test_dropout_is_for_training_alone(dropout: str) -> None:
    changes: dict[str, Any] = {dropout: 0.5}
    model = captioner(**changes)
    features, tokens = torch.rand(2, 5), torch.randint(11, (2, 4))
    torch.testing.assert_close(model(features, tokens), model(features, tokens), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(features, tokens), model(features, tokens))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("inject", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_sharpening_divides_the_logits_and_changes_nothing_else(cell: Cell, inject: Inject, tied: bool) -> None:
    model = captioner(cell, inject, tied=tied, embedding_size=HIDDEN)
    features, tokens = torch.rand(2, 5), torch.randint(11, (2, 5))
    before = model(features, tokens)
    model.sharpen(0.5)
    torch.testing.assert_close(model(features, tokens), before / 0.5, rtol=1e-4, atol=1e-5)


def test_forget_gates_start_open() -> None:
    sizes: dict[str, Any] = {"vocabulary_size": 11, "feature_size": 5, "embedding_size": 4, "hidden_size": HIDDEN}
    model = Captioner(cell="lstm", inject="init", **sizes)
    i, f, g, o = model.recurrent.get_parameter("layers.0.bias").chunk(4)
    assert (f == 1).all()
    assert not torch.cat([i, g, o]).any()


@pytest.mark.parametrize(("cell", "kernel"), [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_weights_of_a_captioner_on_torchs_own_cell_are_still_read(
    cell: Cell, kernel: type[nn.RNN | nn.LSTM | nn.GRU]
) -> None:
    model, theirs = captioner(cell, "init"), kernel(4, HIDDEN)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("recurrent")}
    model.load_state_dict(weights | {f"recurrent.{name}": value for name, value in theirs.state_dict().items()})
    inputs = torch.rand(5, 2, 4)
    torch.testing.assert_close(model.recurrent(inputs)[0], theirs(inputs)[0])
