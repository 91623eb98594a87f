"""The language model: what it shares, how it starts, what it drops."""

from typing import Any

import pytest
import torch

from app.models.language_model import LanguageModel, detached, parameter_count

WORDS = 30


def model(**arguments: Any) -> LanguageModel:
    settings: dict[str, Any] = {"vocabulary_size": WORDS, "embedding_size": 6, "hidden_sizes": (8, 6), "tied": False}
    return LanguageModel(**settings | arguments)


def tokens(steps: int = 5, batch: int = 4) -> torch.Tensor:
    return torch.randint(WORDS, (steps, batch))


def test_the_logits_of_a_window_do_not_depend_on_where_it_is_cut() -> None:
    module, ids = model(), tokens()
    whole = module(ids, module.initial_state(4))
    first = module(ids[:2], module.initial_state(4))
    second = module(ids[2:], first.state)
    logits = module.logits(torch.cat([first.hidden, second.hidden]))  # (T, B, V)
    assert logits.shape == (5, 4, WORDS)
    torch.testing.assert_close(logits, module.logits(whole.hidden))


def test_a_tied_output_is_the_embedding_itself() -> None:
    module = model(tied=True)
    assert module.output.weight is module.embedding.weight
    assert parameter_count(model()) - parameter_count(module) == WORDS * 6
    module(tokens(), module.initial_state(4)).hidden.sum().backward()
    assert module.output.weight.grad is module.embedding.weight.grad


def test_an_untied_output_is_its_own() -> None:
    module = model(hidden_sizes=(8, 7))
    assert module.output.weight.shape == (WORDS, 7)
    assert parameter_count(module) == 30 * 6 + 4 * 8 * (6 + 8 + 1) + 4 * 7 * (8 + 7 + 1) + 30 * 7 + 30


def test_tied_weights_of_different_sizes_are_rejected() -> None:
    with pytest.raises(ValueError, match="tied: expected a last layer of the embedding's size 6, found 8"):
        model(tied=True, hidden_sizes=(6, 8))


def test_all_weights_start_in_the_range_and_forget_gates_at_their_bias() -> None:
    module = model(vocabulary_size=1000, initial_range=0.05, forget_bias=1.0)
    for name, parameter in module.named_parameters():
        if "bias" not in name:
            assert 0.045 < parameter.abs().max() <= 0.05, name
    assert not module.output.bias.any()
    for layer in module.recurrent.layers:
        i, f, g, o = layer.get_parameter("bias").chunk(4)
        assert (f == 1).all()
        assert not torch.cat([i, g, o]).any()


def test_embedding_dropout_drops_whole_words_everywhere_in_the_window() -> None:
    module = model(vocabulary_size=200, embedding_size=64, embedding_dropout=0.5)
    seen: list[torch.Tensor] = []
    module.recurrent.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    ids = torch.arange(200).repeat(2, 1)  # every word at two steps
    module(ids, module.initial_state(200))
    (embedded,) = seen  # (2, 200, E)
    dropped = (embedded == 0).all(dim=-1)  # (2, 200)
    assert (dropped[0] == dropped[1]).all()
    assert 60 < dropped[0].sum() < 140
    kept = ~dropped[0]
    torch.testing.assert_close(embedded[0, kept], 2 * module.embedding.weight[kept])  # so that the mean stays


@pytest.mark.parametrize(
    "name", ["input_dropout", "hidden_dropout", "output_dropout", "weight_drop", "embedding_dropout"]
)
@pytest.mark.parametrize("locked", [True, False])
def test_every_dropout_is_for_training_alone(name: str, locked: bool) -> None:
    dropping = model(locked=locked, initial_range=0.8, **{name: 0.5})
    plain, ids = model(), tokens()
    plain.load_state_dict(dropping.state_dict())
    expected = plain(ids, plain.initial_state(4)).hidden
    assert not torch.allclose(dropping(ids, dropping.initial_state(4)).hidden, expected)
    torch.testing.assert_close(dropping.eval()(ids, dropping.initial_state(4)).hidden, expected, rtol=0, atol=0)


def test_output_dropout_leaves_the_raw_output_as_it_is() -> None:
    module = model(output_dropout=0.5)
    reading = module(tokens(), module.initial_state(4))
    kept = reading.hidden != 0
    assert not kept.all()
    torch.testing.assert_close(reading.hidden[kept], 2 * reading.raw[kept])
    torch.testing.assert_close(reading.raw[-1], reading.state[-1][0])


def test_a_detached_state_ends_the_gradient() -> None:
    module = model()
    first = module(tokens(), module.initial_state(4))
    cut = detached(first.state)
    assert first.state[0][0].requires_grad
    assert not any(part.requires_grad for pair in cut for part in pair)
    torch.testing.assert_close(cut, first.state)
