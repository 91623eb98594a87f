"""The recipe: what the presets are, what a step costs, what the windows cover, what perplexity is."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from app.errors import CorpusError, SettingsError
from app.models.language_model import LanguageModel, detached
from app.models.recurrent import Cell
from app.text import Vocabulary
from training.language_model import recipe as language_model
from training.language_model.data import Corpus, Ids, Source
from training.language_model.objective import Objective
from training.language_model.recipe import PRESETS, LanguageModelConfig, build, perplexity, train
from training.run import Run
from training.session import Carried

AfterStep = Callable[[Callable[[dict[str, Any]], None]], None]
Shrink = Callable[[str], LanguageModelConfig]


def counting_corpus(tokens: int) -> Corpus:
    """A training text that never repeats a token, so that each determines its position."""
    vocabulary = Vocabulary(["<eos>", "<unk>", *map(str, range(2, tokens))])
    ids = np.arange(tokens, dtype=np.int32)
    return Corpus(Source("counting", {}, "none"), vocabulary, ids, ids[:9], ids[:9], {})


# presets


def test_the_chapter_preset_is_the_chapters_system() -> None:
    assert asdict(PRESETS["chapter"]) == {
        "vocabulary_size": 10_000,
        "embedding_size": 200,
        "cell": "lstm",
        "hidden_sizes": (200, 200),
        "tied": False,
        "initial_range": 0.05,
        "forget_bias": 1.0,
        "input_dropout": 0.5,  # on the embedded input
        "hidden_dropout": 0.5,  # on the first layer's output
        "output_dropout": 0.5,  # on the second layer's output
        "weight_drop": 0.0,
        "embedding_dropout": 0.0,
        "locked": False,
        "activation_penalty": 0.0,
        "change_penalty": 0.0,
        "batch_size": 20,
        "steps": 35,
        "shifted": False,
        "cost": "sum",
        "optimiser": "sgd",
        "learning_rate": 1.0,
        "schedule": "constant",
        "constant_epochs": 0,
        "weight_decay": 0.0,
        "clip": 5.0,
        "epochs": 2,
        "precision": "32-true",
        "seed": 1,
        "evaluation_batch": 1,
    }


def test_the_small_preset_is_the_published_one() -> None:
    differs = {
        key: value for key, value in asdict(PRESETS["small"]).items() if value != asdict(PRESETS["chapter"])[key]
    }
    assert differs == {
        "initial_range": 0.1,
        "forget_bias": 0.0,
        "input_dropout": 0.0,
        "hidden_dropout": 0.0,
        "output_dropout": 0.0,
        "steps": 20,
        "schedule": "halving",
        "constant_epochs": 4,
        "epochs": 13,
    }


def test_the_chapter_model_has_two_separate_layers_and_a_softmax_layer_with_bias() -> None:
    model = build(PRESETS["chapter"])
    assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == {
        "embedding.weight": (10_000, 200),
        "recurrent.layers.0.weight_ih": (800, 200),
        "recurrent.layers.0.weight_hh": (800, 200),
        "recurrent.layers.0.bias": (800,),
        "recurrent.layers.1.weight_ih": (800, 200),
        "recurrent.layers.1.weight_hh": (800, 200),
        "recurrent.layers.1.bias": (800,),
        "output.weight": (10_000, 200),
        "output.bias": (10_000,),
    }


# ranges


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("vocabulary_size", [1, 0, -1], 2),
        ("embedding_size", [0, -1], 1),
        ("hidden_sizes", [(), (0,), (5, -1)], (1,)),
        ("batch_size", [0, -1], 1),
        ("steps", [0, -1], 1),
        ("epochs", [0, -1], 1),
        ("evaluation_batch", [0, -1], 1),
        ("input_dropout", [-0.1, 1.0, 1.5, math.nan], 0.0),
        ("hidden_dropout", [-0.1, 1.0, 1.5, math.nan], 0.99),
        ("output_dropout", [-0.1, 1.0, 1.5, math.nan], 0.99),
        ("weight_drop", [-0.1, 1.0, 1.5, math.nan], 0.99),
        ("embedding_dropout", [-0.1, 1.0, 1.5, math.nan], 0.99),
        ("learning_rate", [0.0, -1.0, math.inf, math.nan], 1e-9),
        ("clip", [0.0, -1.0, math.inf, math.nan], 1e-9),
        ("initial_range", [-0.1, math.inf, math.nan], 0.0),
        ("activation_penalty", [-0.1, math.inf, math.nan], 0.0),
        ("change_penalty", [-0.1, math.inf, math.nan], 0.0),
        ("weight_decay", [-0.1, math.inf, math.nan], 0.0),
        ("constant_epochs", [-1], 0),
        ("forget_bias", [math.inf, math.nan], -1.0),
        ("seed", [-1, 2**41], 2**40),
    ],
)
def test_a_field_out_of_its_range_is_rejected_by_name(field: str, wrong: list[Any], right: Any) -> None:
    for value in wrong:
        with pytest.raises(SettingsError, match=rf"^{field}: expected .+, found {re.escape(str(value))}$"):
            replace(PRESETS["chapter"], **{field: value})
    assert getattr(replace(PRESETS["chapter"], **{field: right}), field) == right


def test_all_fields_out_of_their_range_are_reported_together() -> None:
    with pytest.raises(SettingsError) as refusal:
        LanguageModelConfig(batch_size=0, clip=-1.0)
    assert str(refusal.value) == "batch_size: expected 1 or more, found 0; clip: expected a number above 0, found -1.0"


def test_the_greatest_seed_can_be_trained_with(shrunk: Shrink, corpus: Corpus, tmp_path: Path) -> None:
    assert train(replace(shrunk("cpu"), seed=2**40), corpus, Run(tmp_path))


# cost and step


def by_hand(config: LanguageModelConfig, ids: Ids) -> LanguageModel:
    """The chapter's training, written out: a word at a time, plain gradient descent, the norm clipped."""
    torch.manual_seed(config.seed)
    model = build(config)
    parameters = list(model.parameters())
    count = (len(ids) - 1) // (config.batch_size * config.steps)
    length = count * config.steps  # of each stream
    stream = torch.tensor(ids.astype(np.int64))
    starts = torch.arange(config.batch_size) * length
    for _ in range(config.epochs):
        state = model.initial_state(config.batch_size)
        for window in range(count):
            cost = torch.zeros(())
            for step in range(window * config.steps, (window + 1) * config.steps):
                hidden, _, state = model(stream[None, starts + step], state)
                probabilities = model.logits(hidden[0]).softmax(-1)  # (B, V)
                cost = cost - probabilities.gather(1, stream[starts + step + 1, None]).log().sum()
            cost = cost / config.batch_size
            if config.cost == "mean":
                cost = cost / config.steps
            gradients = torch.autograd.grad(cost, parameters)
            norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(config.learning_rate * gradient * min(1, config.clip / norm))
            state = detached(state)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"epochs": 1, "batch_size": 20, "steps": 35}, id="one step of the chapter's size"),
        pytest.param({}, id="windows and epochs"),
        pytest.param({"clip": 0.05}, id="clipped"),
        pytest.param({"cost": "mean"}, id="mean over the steps"),
    ],
)
def test_a_step_follows_the_gradient_of_the_summed_cost(
    changes: dict[str, Any], shrunk: Shrink, corpus: Corpus, tmp_path: Path
) -> None:
    config = replace(shrunk("chapter"), input_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0, **changes)
    ids = np.random.default_rng(1).integers(config.vocabulary_size, size=config.batch_size * config.steps + 30)
    corpus = replace(corpus, train=ids.astype(np.int32))
    run = Run(tmp_path)
    train(config, corpus, run)
    trained = torch.load(run.checkpoint)["model"]
    for name, expected in by_hand(config, corpus.train).state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-4, atol=1e-6)


def test_the_penalties_pull_activations_and_their_changes_down(shrunk: Shrink, corpus: Corpus, tmp_path: Path) -> None:
    def activations(name: str, **penalties: Any) -> tuple[float, float]:
        config = replace(shrunk("cpu"), epochs=8, initial_range=0.5, **penalties)
        train(config, corpus, Run(tmp_path / name))
        model = build(config).eval()
        model.load_state_dict(torch.load(tmp_path / name / "checkpoint.pt")["model"])
        raw = model(torch.tensor(corpus.train.astype(np.int64))[:, None], model.initial_state(1)).raw
        return raw.square().mean().item(), raw.diff(dim=0).square().mean().item()

    size, change = activations("none", activation_penalty=0.0, change_penalty=0.0)
    assert activations("size", activation_penalty=50.0, change_penalty=0.0)[0] < size / 2
    assert activations("change", activation_penalty=0.0, change_penalty=50.0)[1] < change / 2


# windows


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, bool]]:
    """Each window that a model is trained on: its tokens (T, B), and whether it starts from a zero state."""
    seen: list[tuple[Tensor, bool]] = []

    def watched(config: LanguageModelConfig) -> LanguageModel:
        model = build(config)

        def note(module: torch.nn.Module, arguments: tuple[Tensor, list[tuple[Tensor, Tensor]]]) -> None:
            tokens, state = arguments
            if module.training:
                seen.append((tokens, not any(part.any() for pair in state for part in pair)))

        model.register_forward_pre_hook(note)
        return model

    monkeypatch.setattr(language_model, "build", watched)
    return seen


@pytest.mark.parametrize("tokens", [25, 48, 49, 72, 97])
def test_windows_are_contiguous_streams_that_cover_the_text(
    tokens: int, windows: list[tuple[Tensor, bool]], shrunk: Shrink, tmp_path: Path
) -> None:
    config = replace(shrunk("chapter"), vocabulary_size=tokens)  # batch 4, 6 steps, 2 epochs
    train(config, counting_corpus(tokens), Run(tmp_path))
    count = (tokens - 1) // 24
    assert len(windows) == 2 * count
    for epoch in (windows[:count], windows[count:]):
        streams = torch.cat([window for window, _ in epoch]).T  # (B, T)
        assert streams.flatten().tolist() == list(range(24 * count))
        assert [fresh for _, fresh in epoch] == [True] + [False] * (count - 1)


def test_shifted_windows_are_cut_elsewhere_in_each_epoch(
    windows: list[tuple[Tensor, bool]], shrunk: Shrink, tmp_path: Path
) -> None:
    config = replace(
        shrunk("chapter"), vocabulary_size=70, shifted=True, epochs=20
    )  # two windows and 21 tokens to spare
    train(config, counting_corpus(70), Run(tmp_path))
    offsets = []
    for epoch in range(20):
        streams = torch.cat([window for window, _ in windows[2 * epoch : 2 * epoch + 2]]).T.flatten()
        offsets.append(int(streams[0]))
        assert streams.tolist() == list(range(offsets[-1], offsets[-1] + 48))
    assert len(set(offsets)) > 10
    assert max(offsets) <= 21


@pytest.mark.parametrize("tokens", [2, 24])
def test_a_text_shorter_than_one_window_is_rejected_before_anything_is_written(
    tokens: int, shrunk: Shrink, tmp_path: Path
) -> None:
    config = replace(shrunk("chapter"), vocabulary_size=tokens)
    with pytest.raises(CorpusError, match=f"training text: expected more than 24 tokens, found {tokens}"):
        train(config, counting_corpus(tokens), Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# schedules


def test_the_rate_is_halved_each_epoch_after_the_constant_ones(shrunk: Shrink, corpus: Corpus, tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(replace(shrunk("small"), epochs=7), corpus, run)
    assert [entry["learning_rate"] for entry in run.metrics()] == [1, 1, 1, 1, 0.5, 0.25, 0.125]


def test_one_cycle_raises_the_rate_then_lowers_it_and_the_momentum_mirrors_it(
    shrunk: Shrink, corpus: Corpus, tmp_path: Path, after_step: AfterStep
) -> None:
    rates, momenta, config = list[float](), list[float](), replace(shrunk("gpu"), epochs=10)

    def note(state: dict[str, Any]) -> None:
        (group,) = state["optimiser"].param_groups
        rates.append(group["lr"])
        momenta.append(group["betas"][0])

    after_step(note)
    train(config, corpus, Run(tmp_path))
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(config.learning_rate, rel=0.02)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:-1] == sorted(rates[peak:-1], reverse=True)
    assert rates[-2] < 1e-3 * config.learning_rate
    assert momenta[peak] == min(momenta) == pytest.approx(0.7, abs=0.01)
    assert momenta[-2] == pytest.approx(0.8, abs=0.01)


# learning


def test_a_tiny_text_is_learnt_by_heart(corpus: Corpus, shrunk: Shrink, tmp_path: Path) -> None:
    config = replace(
        shrunk("chapter"),
        input_dropout=0.0,
        hidden_dropout=0.0,
        output_dropout=0.0,
        optimiser="adam",
        cost="mean",
        learning_rate=0.05,
        epochs=70,
    )
    run = Run(tmp_path)
    train(config, replace(corpus, train=corpus.train[:25]), run)  # one window
    first, last = run.metrics()[0], run.metrics()[-1]
    assert first["train_perplexity"] > 10
    assert last["train_perplexity"] < 1.2


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(preset: str, shrunk: Shrink, corpus: Corpus, tmp_path: Path) -> None:
    config, run = shrunk(preset), Run(tmp_path)
    assert train(replace(config, epochs=6), corpus, run)
    perplexities = [entry["train_perplexity"] for entry in run.metrics()]
    assert perplexities[-1] < perplexities[0] < 1.1 * config.vocabulary_size
    assert [entry["epoch"] for entry in run.metrics()] == [1, 2, 3, 4, 5, 6]


# evaluation


@pytest.fixture
def model(shrunk: Shrink) -> LanguageModel:
    torch.manual_seed(3)
    return build(replace(shrunk("cpu"), initial_range=0.8))  # in training mode, which evaluation has to leave


def one_at_a_time(model: LanguageModel, ids: Ids, end: int) -> float:
    """exp(total cost / steps), the state carried through the whole text."""
    state, before, cost = model.eval().initial_state(1), end, 0.0
    for token in map(int, ids):
        hidden, _, state = model(torch.tensor([[before]]), detached(state))
        cost -= model.logits(hidden)[0, 0].log_softmax(-1)[token].item()
        before = token
    return math.exp(cost / len(ids))


@pytest.mark.parametrize("steps", [1, 7, 512])
def test_perplexity_is_that_of_a_word_at_a_time(model: LanguageModel, corpus: Corpus, steps: int) -> None:
    end = corpus.vocabulary.end
    found = perplexity(model, corpus.valid, end, steps=steps)
    assert found == pytest.approx(one_at_a_time(model, corpus.valid, end), rel=1e-5)


def test_each_stream_of_a_batch_starts_as_after_an_eos(model: LanguageModel, corpus: Corpus) -> None:
    end, half = corpus.vocabulary.end, len(corpus.valid) // 2
    costs = [math.log(one_at_a_time(model, part, end)) for part in (corpus.valid[:half], corpus.valid[half : 2 * half])]
    assert perplexity(model, corpus.valid, end, batch_size=2) == pytest.approx(math.exp(sum(costs) / 2), rel=1e-5)


def test_a_text_shorter_than_the_batch_is_evaluated_too(model: LanguageModel, corpus: Corpus) -> None:
    ids, end = corpus.valid[:3], corpus.vocabulary.end
    costs = [math.log(one_at_a_time(model, ids[place : place + 1], end)) for place in range(3)]
    assert perplexity(model, ids, end, batch_size=16) == pytest.approx(math.exp(sum(costs) / 3), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(model: LanguageModel, corpus: Corpus) -> None:
    torch.nn.init.zeros_(model.output.weight)
    torch.nn.init.zeros_(model.output.bias)
    assert perplexity(model, corpus.test, corpus.vocabulary.end) == pytest.approx(len(corpus.vocabulary), rel=1e-5)


def test_every_step_calls_the_module_that_fabric_wraps(
    shrunk: Shrink, tmp_path: Path, wrapped_calls: list[str]
) -> None:
    config = replace(shrunk("gpu"), vocabulary_size=200)
    train(config, counting_corpus(200), Run(tmp_path))
    windows = 199 // (config.batch_size * config.steps)
    assert wrapped_calls == ["Objective"] * windows * config.epochs


@pytest.mark.parametrize("cell", ["peephole", "gru"])
def test_mixed_precision_does_not_round_the_carried_state(cell: Cell, shrunk: Shrink, tmp_path: Path) -> None:
    config = replace(shrunk("cpu"), vocabulary_size=200, cell=cell, epochs=1)
    assert config.precision == "bf16-mixed"
    run = Run(tmp_path)
    train(config, counting_corpus(200), run, minutes=0)  # stops after the first window
    carried = torch.load(run.checkpoint)["progress"]["carried"]
    assert all(layer[-1].dtype == torch.float32 for layer in carried)
    assert not all(torch.equal(layer[-1], layer[-1].bfloat16().float()) for layer in carried)
    fabric = Fabric(devices=1, precision="bf16-mixed")
    wrapped, seen = fabric.setup(Objective(build(config), 0.0, 0.0)), []
    wrapped.module.model.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    wrapped(torch.zeros(6, 4, dtype=torch.int64), torch.zeros(6, 4, dtype=torch.int64), Carried(carried))
    assert all(map(torch.equal, (part for layer in seen[0] for part in layer), (p for layer in carried for p in layer)))
