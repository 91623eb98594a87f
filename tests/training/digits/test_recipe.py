"""The digit recipe: presets, batches, stopped and killed runs."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.errors import SettingsError
from app.images import framed_array
from app.models.digits import ReNet, RowReader
from tests.drawn_digits import corpus as drawn_corpus
from tests.drawn_digits import digits as drawn
from tests.training.test_run import Doomed, KilledError, same
from training.digits import recipe as recipe
from training.digits.data import DigitCorpus, Digits
from training.digits.recipe import (
    MAX_DRAWS,
    NO_DIGIT,
    PRESETS,
    DigitsConfig,
    accuracy,
    as_input,
    build,
    framed_batch,
    train,
    validation_sets,
)
from training.run import Run, RunError

AfterStep = Callable[[Callable[[dict[str, Any]], None]], None]


@pytest.fixture(scope="module")
def corpus() -> DigitCorpus:
    return drawn_corpus()


def shrunk(preset: str) -> DigitsConfig:
    """Shrink a preset to small layers and two epochs of three steps."""
    config = PRESETS[preset]
    sizes: dict[str, Any] = (
        {"hidden_sizes": (8,)} if config.reader == "rows" else {"hidden_sizes": (4, 6), "patches": (4, 7)}
    )
    return replace(config, **sizes, batch_size=20, samples=120)


def assert_same_run(one: Run, other: Run) -> None:
    first, second = (torch.load(run.checkpoint) for run in (one, other))
    for part in ("model", "averaged", "optimiser", "schedule", "progress"):
        assert same(first[part], second[part]), part
    assert untimed(one) == untimed(other)
    assert one.read("result.json") == other.read("result.json")


def untimed(run: Run) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in run.metrics()]


# presets


def test_the_chapter_preset_is_the_chapters_system() -> None:
    assert asdict(PRESETS["chapter"]) == {
        "reader": "rows",
        "cell": "lstm",
        "hidden_sizes": (256,),
        "patches": (1,),
        "dropout": 0.0,
        "samples": 400_000,
        "batch_size": 128,
        "p_elastic": 0.0,
        "p_degraded": 0.0,
        "p_printed": 0.0,
        "p_composed": 0.0,
        "negatives": 0.0,
        "label_smoothing": 0.0,
        "optimiser": "adam",
        "learning_rate": 0.01,
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip": None,
        "average": 0.0,
        "precision": "32-true",
        "seed": 1,
    }
    model = build(PRESETS["chapter"])
    assert isinstance(model, RowReader)
    assert (model.recurrent.hidden_sizes, model.output.out_features) == ((256,), 10)


def test_the_best_preset_has_the_measured_improvements() -> None:
    config = PRESETS["best"]
    assert (config.reader, config.schedule) == ("renet", "one-cycle")
    assert len(config.hidden_sizes) > 1
    assert (
        min(
            config.p_elastic,
            config.p_degraded,
            config.p_printed,
            config.p_composed,
            config.negatives,
            config.label_smoothing,
            config.average,
        )
        > 0
    )
    model = build(config)
    assert isinstance(model, ReNet)
    assert model.output.out_features == 11
    assert not any(isinstance(module, nn.Conv1d | nn.Conv2d) for module in model.modules())


# ranges


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("hidden_sizes", [(), (0,), (-1,)], (1,)),
        ("patches", [(), (0,)], (28,)),
        ("samples", [0, -1], 1),
        ("batch_size", [0, -1], 1),
        ("dropout", [-0.1, 1.0, math.nan], 0.99),
        ("p_elastic", [-0.1, 1.1, math.nan], 1.0),
        ("p_degraded", [-0.1, 1.0, math.nan], 0.99),
        ("p_printed", [-0.1, 1.0, math.nan], 0.99),
        ("p_composed", [-0.1, 1.0, math.nan], 0.99),
        ("negatives", [-0.1, 1.0, math.nan], 0.99),
        ("label_smoothing", [-0.1, 1.0, math.nan], 0.99),
        ("average", [-0.1, 1.0, math.nan], 0.99),
        ("learning_rate", [0.0, -1.0, math.inf, math.nan], 1e-9),
        ("clip", [0.0, -1.0, math.nan], 1e-9),
        ("weight_decay", [-0.1, math.inf, math.nan], 0.0),
        ("seed", [-1, 2**41], 2**40),
    ],
)
def test_a_field_out_of_its_range_is_rejected_by_name(field: str, wrong: list[Any], right: Any) -> None:
    for value in wrong:
        with pytest.raises(SettingsError, match=rf"(^|; ){field}: expected .+, found {re.escape(str(value))}(;|$)"):
            replace(PRESETS["chapter"], **{field: value})
    assert getattr(replace(PRESETS["chapter"], **{field: right}), field) == right


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(SettingsError) as refusal:
        DigitsConfig(batch_size=0, p_degraded=1.5, patches=(2, 2))
    assert str(refusal.value) == (
        "batch_size: expected 1 or more, found 0; p_degraded: expected 0 or more and below 1, found 1.5; "
        "patches: expected one a layer of hidden_sizes (256,), found (2, 2)"
    )


def test_patches_that_do_not_fill_the_image_are_rejected_before_anything_is_written(
    corpus: DigitCorpus, tmp_path: Path
) -> None:
    config = replace(shrunk("best"), patches=(3, 7))
    with pytest.raises(SettingsError, match="patches: expected sides that divide 28, found 3"):
        train(config, corpus, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# what a step is shown


class Shown:
    """Images (B, 28, 28) and labels (B,) of each training step."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.smoothing: set[float] = set()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    seen, cross_entropy = Shown(), F.cross_entropy

    def watched(config: DigitsConfig) -> RowReader | ReNet:
        model = build(config)

        def note(module: nn.Module, arguments: tuple[Tensor]) -> None:
            if module.training:
                seen.images.append((arguments[0] * 255).round().byte())

        model.register_forward_pre_hook(note)
        return model

    def cost(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        seen.labels.append(targets.clone())
        seen.smoothing.add(label_smoothing)
        return cross_entropy(logits, targets, label_smoothing=label_smoothing)

    monkeypatch.setattr(recipe, "build", watched)
    monkeypatch.setattr("training.digits.recipe.F.cross_entropy", cost)
    return seen


def numbered(count: int) -> DigitCorpus:
    """Image n is of the shade n throughout, its label n modulo 10."""
    shades = torch.arange(count)
    images = shades[:, None, None].expand(count, 28, 28).byte()
    return replace(drawn_corpus(), train=Digits(images.contiguous(), shades % 10))


@pytest.mark.parametrize("count", [60, 69])
def test_every_epoch_shows_each_digit_once_in_another_order(count: int, shown: Shown, tmp_path: Path) -> None:
    train(shrunk("chapter"), numbered(count), Run(tmp_path))
    orders = [torch.cat(shown.images[start : start + 3])[:, 0, 0].tolist() for start in (0, 3)]
    assert len(shown.images) == 6
    assert [len(set(order)) for order in orders] == [60, 60]  # the last batch, if it is not full, is left out
    assert orders[0] != orders[1]
    assert all(order != sorted(order) for order in orders)
    assert [label % 10 for order in orders for label in order] == torch.cat(shown.labels).tolist()
    assert shown.smoothing == {0.0}


def test_negatives_stand_in_for_their_share_and_are_the_eleventh_class(shown: Shown, tmp_path: Path) -> None:
    config = replace(shrunk("chapter"), negatives=0.1)
    train(config, numbered(60), Run(tmp_path))
    for images, labels in zip(shown.images, shown.labels, strict=True):
        assert labels[18:].tolist() == [NO_DIGIT, NO_DIGIT]
        assert labels[:18].tolist() == [shade % 10 for shade in images[:18, 0, 0].tolist()]
        assert (images[:18] == images[:18, :1, :1]).all()
    assert torch.load(tmp_path / "checkpoint.pt")["model"]["output.bias"].shape == (11,)


def test_printed_digits_stand_in_for_their_share_with_the_label_that_is_printed(shown: Shown, tmp_path: Path) -> None:
    train(replace(shrunk("chapter"), p_printed=0.25), numbered(60), Run(tmp_path))
    printed = torch.cat([images[:5] for images in shown.images]).flatten(1).float()
    labels = torch.cat([labels[:5] for labels in shown.labels])
    assert set(labels.tolist()) <= set(range(10))
    apart = torch.cdist(printed, printed)
    alike = labels[:, None] == labels
    assert apart[alike].sum() / (alike.sum() - len(labels)) < 0.9 * apart[~alike].mean()
    for images, labels in zip(shown.images, shown.labels, strict=True):
        assert labels[5:].tolist() == [shade % 10 for shade in images[5:, 0, 0].tolist()]


@pytest.mark.parametrize(
    ("shares", "changed"),
    [
        ({"p_degraded": 0.3}, range(4, 7)),  # a stain may miss the ink
        ({"p_elastic": 0.5}, range(10, 11)),
        ({"p_elastic": 1.0, "p_degraded": 0.3}, range(20, 21)),
        ({"p_degraded": 0.3, "negatives": 0.1}, range(6, 9)),
        ({"p_composed": 0.3}, range(4, 7)),
        ({"p_composed": 0.3, "negatives": 0.1}, range(6, 9)),
        ({"p_elastic": 0.5, "p_degraded": 0.3}, range(10, 13)),  # a third of the degraded ones is not elastic
    ],
    ids=str,
)
def test_the_given_share_is_changed_and_keeps_its_labels(
    shares: dict[str, Any], changed: range, shown: Shown, corpus: DigitCorpus, tmp_path: Path
) -> None:
    train(replace(shrunk("chapter"), **shares), corpus, Run(tmp_path))
    part = corpus.train
    known = {image.numpy().tobytes(): int(label) for image, label in zip(part.images, part.labels, strict=True)}
    for images, labels in zip(shown.images, shown.labels, strict=True):
        found = [known.get(image.numpy().tobytes()) for image in images]
        assert found.count(None) in changed
        assert all(was in (None, label) for was, label in zip(found, labels.tolist(), strict=True))
    if "negatives" not in shares:
        assert torch.cat(shown.labels).bincount().tolist() == [12] * 10


def test_what_the_framing_refuses_is_drawn_again_but_not_for_ever() -> None:
    blank, bar = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    bar[10:30, 18:22] = 255
    drawn = iter([blank, blank, bar])
    found = framed_batch([lambda: next(drawn)])
    assert torch.equal(found[0], torch.from_numpy(framed_array(bar).pixels))
    calls = list[None]()
    refused = framed_batch([lambda: calls.append(None) or blank])  # type: ignore[func-returns-value]
    assert not refused.any()
    assert len(calls) == MAX_DRAWS


def test_labels_are_smoothed_as_configured(shown: Shown, corpus: DigitCorpus, tmp_path: Path) -> None:
    train(replace(shrunk("chapter"), label_smoothing=0.25), corpus, Run(tmp_path))
    assert shown.smoothing == {0.25}


# learning


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns_a_batch_by_heart(preset: str, tmp_path: Path) -> None:
    config = replace(
        shrunk(preset),
        hidden_sizes=(32,),
        patches=(7,),
        p_elastic=0.0,
        p_degraded=0.0,
        p_printed=0.0,
        p_composed=0.0,
        negatives=0.0,
        dropout=0.0,
        average=0.5,
        learning_rate=0.02,
        samples=20 * 80,
    )
    run = Run(tmp_path)
    train(config, replace(drawn_corpus(), train=drawn(20, seed=1)), run)
    first, last = run.metrics()[0], run.metrics()[-1]
    assert first["train_accuracy"] < 0.5
    assert last["train_accuracy"] == 1
    assert last["valid_accuracy"] > 0.5  # strokes are alike; by chance one in ten is right


def test_the_chapters_training_is_adam_on_the_mean_cross_entropy(corpus: DigitCorpus, tmp_path: Path) -> None:
    config = replace(shrunk("chapter"), batch_size=60, samples=4 * 60)  # the whole part at once: no order matters
    run = Run(tmp_path)
    train(config, corpus, run)
    torch.manual_seed(config.seed)
    model = build(config)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(4):
        optimiser.zero_grad()
        F.cross_entropy(model(as_input(corpus.train.images)), corpus.train.labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    trained = torch.load(run.checkpoint)["model"]
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_weights_are_averaged_over_the_steps(
    decay: float, corpus: DigitCorpus, tmp_path: Path, after_step: AfterStep
) -> None:
    run, steps = Run(tmp_path), list[dict[str, Tensor]]()
    after_step(lambda state: steps.append({name: value.clone() for name, value in state["model"].state_dict().items()}))
    train(replace(shrunk("chapter"), average=decay), corpus, run)
    expected, *later = steps
    for weights in later:
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in expected}
    averaged = torch.load(run.checkpoint)["averaged"]
    for name, value in expected.items():
        torch.testing.assert_close(averaged[f"module.{name}"], value)


def test_the_averaged_weights_are_the_validated_ones(corpus: DigitCorpus, tmp_path: Path) -> None:
    config, run = replace(shrunk("chapter"), average=0.9, samples=1200), Run(tmp_path)
    train(config, corpus, run)
    averaged = torch.load(run.checkpoint)["averaged"]
    model = build(config)
    model.load_state_dict({key.removeprefix("module."): averaged[key] for key in averaged if key != "n_averaged"})
    assert run.read("result.json") == {"valid_accuracy": accuracy(model, corpus.valid)}
    assert run.metrics()[-1]["valid_accuracy"] == accuracy(model, corpus.valid)


def test_one_cycle_raises_the_rate_for_a_fifth_of_the_steps_then_lowers_it(
    corpus: DigitCorpus, tmp_path: Path, after_step: AfterStep
) -> None:
    rates, config = list[float](), replace(shrunk("chapter"), schedule="one-cycle", samples=20 * 40)
    after_step(lambda state: rates.append(state["optimiser"].param_groups[0]["lr"]))
    train(config, corpus, Run(tmp_path))
    peak = rates.index(max(rates))
    assert peak == pytest.approx(40 * 0.2, abs=2)
    assert max(rates) == pytest.approx(config.learning_rate, rel=0.02)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:-1] == sorted(rates[peak:-1], reverse=True)
    assert rates[-2] < 0.01 * config.learning_rate


# evaluation


def test_accuracy_is_the_share_of_right_answers_in_batches_of_any_size(corpus: DigitCorpus) -> None:
    class Knows(nn.Module):
        """Is right about every digit but the nines, unless it is training."""

        def __init__(self) -> None:
            super().__init__()
            self.device = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            assert images.max() <= 1
            found = [known[(image * 255).round().byte().numpy().tobytes()] for image in images]
            return F.one_hot(torch.tensor([min(label, 8) for label in found]), 10).float()

    pairs = zip(corpus.valid.images, corpus.valid.labels.tolist(), strict=True)
    known = {image.numpy().tobytes(): label for image, label in pairs}
    for batch_size in (1, 7, 500):
        assert accuracy(Knows().train(), corpus.valid, batch_size) == pytest.approx(0.9)


def test_an_epoch_is_measured_on_the_kinds_it_trains(corpus: DigitCorpus) -> None:
    assert validation_sets(corpus.valid, shrunk("chapter")) == {"valid": corpus.valid}
    parts = validation_sets(corpus.valid, shrunk("best"))
    assert parts.keys() == {"valid", "valid_degraded", "valid_composed", "valid_no_digit"}
    assert parts["valid_degraded"].labels.equal(corpus.valid.labels)
    assert not parts["valid_degraded"].images.equal(corpus.valid.images)
    assert (parts["valid_no_digit"].labels == NO_DIGIT).all()
    again = validation_sets(corpus.valid, replace(shrunk("best"), seed=9))
    assert all(again[name].images.equal(part.images) for name, part in parts.items())  # the same for every run


def test_metrics_are_reported_epoch_by_epoch(corpus: DigitCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(replace(shrunk("best"), samples=20 * 7), corpus, run)  # two epochs and a step
    assert [entry["epoch"] for entry in run.metrics()] == [1, 2, 3]
    assert all(0 <= entry["train_accuracy"] <= 1 for entry in run.metrics())
    assert run.metrics()[0].keys() == {
        *("epoch", "train_cost", "train_accuracy", "learning_rate", "images_per_second"),
        *("valid_accuracy", "valid_degraded_accuracy", "valid_composed_accuracy", "valid_no_digit_accuracy"),
    }
    assert run.read("environment.json")["family"] == "digits"
    assert run.read("source.json") == corpus.describe() | {"photographs": 0, "fine_tuned": False}
    assert list(run.folder.glob("tensorboard/events*"))


def test_fine_tuning_starts_from_the_given_weights(corpus: DigitCorpus, tmp_path: Path) -> None:
    config = replace(shrunk("chapter"), samples=20, learning_rate=1e-9)
    torch.manual_seed(7)
    weights = build(config).state_dict()
    run = Run(tmp_path)
    train(config, corpus, run, weights=weights)
    trained = torch.load(run.checkpoint)["model"]
    assert all(torch.allclose(trained[name], value, atol=1e-6) for name, value in weights.items())
    assert run.read("source.json")["fine_tuned"]


# stopped and killed


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_stopped_after_every_step_ends_as_an_undisturbed_one(
    preset: str, corpus: DigitCorpus, tmp_path: Path
) -> None:
    config, whole, pieces = shrunk(preset), Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    assert train(config, corpus, whole)
    stops = 0
    while not train(config, corpus, pieces, resume=True, minutes=0):
        stops += 1
        torch.rand(stops)  # what else drew numbers in between must not matter
    assert stops == 6
    assert_same_run(whole, pieces)


@pytest.mark.parametrize(
    ("moment", "nth"),
    [
        ("while saving", 1),  # before there is any checkpoint
        ("while saving", 4),
        ("after saving", 3),
        ("before recording", 2),
        ("after recording", 1),
        ("before finishing", 1),
    ],
)
def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(
    moment: str, nth: int, finished: Callable[[], Run], corpus: DigitCorpus, tmp_path: Path
) -> None:
    config, folder = shrunk("chapter"), tmp_path / "run"
    with pytest.raises(KilledError):
        train(config, corpus, Doomed(folder, moment, nth))
    assert train(config, corpus, Run(folder), resume=True)
    assert_same_run(finished(), Run(folder))


@pytest.fixture(scope="module")
def finished(corpus: DigitCorpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Run]:
    """An uninterrupted run of the shrunk `chapter` preset. Read only."""
    run = Run(tmp_path_factory.mktemp("runs") / "finished")
    train(shrunk("chapter"), corpus, run)
    return lambda: run


def test_resuming_a_finished_run_changes_nothing(
    finished: Callable[[], Run], corpus: DigitCorpus, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    train(shrunk("chapter"), corpus, run)
    assert train(shrunk("chapter"), corpus, run, resume=True)
    assert_same_run(finished(), run)


def test_resuming_with_another_configuration_is_rejected_by_field(
    finished: Callable[[], Run], corpus: DigitCorpus
) -> None:
    run = finished()
    with pytest.raises(
        RunError, match=f"{run.folder}: started with another configuration: p_degraded is 0.5, was 0.0$"
    ):
        train(replace(shrunk("chapter"), p_degraded=0.5), corpus, run, resume=True)


def test_a_run_with_the_field_names_of_older_versions_is_not_resumed(corpus: DigitCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(shrunk("chapter"), corpus, run, minutes=0)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("p_degraded", "soiled"))
    with pytest.raises(RunError, match=f"{tmp_path}: started with another configuration: p_degraded is 0.0, was None$"):
        train(shrunk("chapter"), corpus, run, resume=True)


def test_starting_over_an_existing_run_is_rejected(finished: Callable[[], Run], corpus: DigitCorpus) -> None:
    with pytest.raises(RunError, match=f"{finished().folder}: holds a run already; go on with --resume"):
        train(shrunk("chapter"), corpus, finished())


def test_every_step_calls_the_module_that_fabric_wraps(
    corpus: DigitCorpus, tmp_path: Path, wrapped_calls: list[str]
) -> None:
    train(shrunk("chapter"), corpus, Run(tmp_path))
    assert wrapped_calls == ["RowReader"] * 6
