"""The comparison of the cells: fair, resumable, and a report that says what was measured and nothing else."""

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from app.models.language_model import parameter_count
from app.models.recurrent import CELLS, Cell, Recurrent
from tests.drawn_digits import corpus as drawn_corpus
from training.__main__ import main
from training.cells import adding, comparison, gradients, latency
from training.cells.adding import BASELINE, Adder, AddingConfig, Trial, sequences, solved_at
from training.cells.comparison import Corpora, measure, perform, recent_perplexities, results_of
from training.cells.gradients import gradient_norms
from training.cells.plan import BUILD, PARTS, Comparison, Job, Part, Results, best_rates, plan
from training.cells.report import agreement
from training.cells.sizes import matched, parameters
from training.cells.statistics import Sample, least_difference, verdict, welch
from training.digits.recipe import DigitsConfig
from training.language_model.data import Corpus, Source
from training.language_model.recipe import LanguageModelConfig
from training.publishing import CELL_NAMES
from training.run import Run, RunError

TINY = AddingConfig(hidden_sizes=(6,), length=6, steps=3, batch_size=4, measured_every=2, measured_on=8)
SIZES = (
    *("--language-model.embedding-size", 6, "--language-model.hidden-sizes", 8, 6, "--language-model.batch-size", 4),
    *("--language-model.steps", 6, "--language-model.epochs", 2, "--language-model.evaluation-batch", 2),
    *("--digits.hidden-sizes", 4, "--digits.samples", 40, "--digits.batch-size", 20),
    *("--adding.hidden-sizes", 6, "--adding.steps", 3, "--adding.batch-size", 4, "--adding.measured-every", 2),
    *("--adding.measured-on", 8, "--adding.learning-rates", 0.01, "--lengths", 6, 4, "--seeds", 1, 2),
    *("--rates", 0.001, 0.1),
)

# Fairness


@pytest.mark.parametrize("recipe", ["language_model", "digits", "adding"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_as_many_parameters(cell: Cell, recipe: str) -> None:
    reference = getattr(Comparison(), recipe)
    build = BUILD[type(reference)]
    fitted = matched(reference, cell, build)
    assert parameters(fitted, build) == pytest.approx(parameters(reference, build), rel=0.02), "5 % are allowed"
    assert replace(fitted, cell=reference.cell, hidden_sizes=reference.hidden_sizes) == reference, "all else is equal"


def test_a_cell_is_matched_with_itself_at_the_same_width() -> None:
    assert matched(Comparison().adding, "lstm", Adder) == Comparison().adding


@pytest.mark.parametrize("cell", CELLS)
def test_counting_builds_nothing_and_counts_right(cell: Cell) -> None:
    config = replace(TINY, cell=cell)
    before = torch.get_rng_state()
    assert parameters(config, Adder) == parameter_count(Adder(config))
    torch.set_rng_state(before)
    parameters(config, Adder)
    assert torch.equal(torch.get_rng_state(), before)


# The adding problem


@pytest.mark.parametrize("length", [4, 7, 100])
def test_two_numbers_are_marked_one_in_each_half_and_their_sum_is_the_target(length: int) -> None:
    inputs, sums = sequences(50, length, seed=3)
    values, marks = inputs.unbind(-1)
    assert inputs.shape == (length, 50, 2)
    assert set(marks.flatten().tolist()) == {0.0, 1.0}
    assert (marks[: length // 2].sum(0) == 1).all()
    assert (marks[length // 2 :].sum(0) == 1).all()
    assert torch.allclose((values * marks).sum(0), sums)
    assert 0 <= values.min() <= values.max() <= 1


def test_sequences_hang_on_their_seed_alone() -> None:
    assert torch.equal(sequences(5, 9, 1)[0], sequences(5, 9, 1)[0])
    assert not torch.equal(sequences(5, 9, 1)[0], sequences(5, 9, 2)[0])


def test_the_constant_answer_has_the_baselines_error() -> None:
    _, sums = sequences(20_000, 10, 1)
    assert (sums - 1).square().mean().item() == pytest.approx(BASELINE, rel=0.03)


@pytest.mark.parametrize("cell", CELLS)
def test_a_gated_unit_begins_with_a_memory_of_at_most_the_sequences_length(cell: Cell) -> None:
    torch.manual_seed(1)
    length, size = 200, 64
    (layer,) = Adder(AddingConfig(cell=cell, hidden_sizes=(size,), length=length)).recurrent.layers
    kept_by = {"lstm": slice(size, 2 * size), "peephole": slice(size, 2 * size), "gru": slice(size, 2 * size)}
    sign, rows = (1, kept_by[cell]) if cell in kept_by else (-1, slice(0, size))
    bias: torch.Tensor = sign * layer.bias.detach()[rows]  # type: ignore[operator]
    spans = bias.exp()  # 1 / (1 - sigmoid(bias)) - 1
    if cell == "rnn":
        assert not bias.any()
    else:
        assert 1 <= spans.min() < 20 < length - 20 < spans.max() <= length - 1
    if cell in ("lstm", "peephole"):
        assert torch.equal(layer.bias[:size], -layer.bias[size : 2 * size])  # type: ignore[index]


@pytest.mark.parametrize("cell", CELLS)
def test_training_is_repeatable_and_its_curve_ends_with_the_last_step(cell: Cell) -> None:
    first, second = (adding.train(replace(TINY, cell=cell), 0.01) for _ in range(2))
    assert first.curve == second.curve
    assert [step for step, _ in first.curve] == [0, 2, 3]
    assert first.error == first.curve[-1][1]


def test_a_short_problem_is_learnt() -> None:
    config = AddingConfig(hidden_sizes=(24,), length=8, steps=300, measured_every=300, measured_on=200)
    assert adding.train(config, 0.01).error < BASELINE / 4


@pytest.mark.parametrize(
    ("errors", "tried"), [((0.001, 0.002), (0.1,)), ((0.2, 0.001, 0.3), (0.1, 0.01)), ((0.2, 0.3), (0.1, 0.01))]
)
def test_rates_are_tried_until_one_solves_the_problem(
    errors: tuple[float, ...], tried: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(errors)
    monkeypatch.setattr(
        adding, "train", lambda config, rate: Trial(rate, Adder(config), [(0, 1.0), (3, next(answers))])
    )
    trials = adding.solve(replace(TINY, learning_rates=(0.1, 0.01)))
    assert tuple(trial.learning_rate for trial in trials) == tried


@pytest.mark.parametrize(
    ("errors", "solved"),
    [
        ([0.2, 0.1], None),
        ([0.2, 0.001, 0.002], 1),
        ([0.2, 0.001, 0.2, 0.001], 3),
        ([0.001, 0.2], None),
        ([0.2, math.nan], None),
    ],
)
def test_a_problem_is_solved_when_no_later_error_is_large(errors: list[float], solved: int | None) -> None:
    assert solved_at(list(enumerate(errors))) == solved


# Gradients


def test_gradient_norms_are_those_of_the_chain_rule() -> None:
    torch.manual_seed(1)
    recurrent = Recurrent(3, (5,), cell="rnn")
    recurrent.reset(0.5, 0.0)
    inputs, direction = torch.randn(7, 1, 3), torch.randn(5)
    norms = gradient_norms(recurrent, inputs, lambda h: h @ direction)
    states, _ = recurrent(inputs)
    (layer,) = recurrent.layers
    gradient, expected = direction, []
    for hidden in reversed(states.detach()[:, 0]):
        expected.append(gradient.norm().item())
        gradient = layer.weight_hh.detach().T @ ((1 - hidden**2) * gradient)  # type: ignore[operator]
    assert norms == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_reach_all_steps_of_all_layers(cell: Cell) -> None:
    torch.manual_seed(1)
    recurrent = Recurrent(3, (4, 5), cell=cell)
    recurrent.reset(0.5, 1.0)
    inputs = torch.randn(6, 3, 3)
    norms = gradient_norms(recurrent, inputs, lambda h: h.square().sum(1))
    assert len(norms) == 6
    assert min(norms) > 0
    other = gradient_norms(recurrent, inputs[:, :1], lambda h: h.square().sum(1))
    assert other != norms, "the median is over the batch"


def test_a_gated_memory_keeps_a_gradient_that_a_tanh_rnn_loses() -> None:
    def share(cell: Cell) -> float:
        torch.manual_seed(1)
        model, (inputs, sums) = Adder(AddingConfig(cell=cell, hidden_sizes=(32,), length=100)), sequences(8, 100, 1)
        norms = gradient_norms(model.recurrent, inputs, lambda h: (model.answer(h) - sums).square())
        return norms[-1] / norms[0]

    assert share("rnn") < 1e-6 < 1e-4 < share("lstm")


# Statistics


def test_welchs_test_gives_the_textbooks_probabilities() -> None:
    """Reference values of scipy.stats.ttest_ind(equal_var=False)."""
    assert welch(Sample((1, 2, 4)), Sample((3, 5, 6.5, 7))) == pytest.approx(0.06213910036315358, rel=1e-6)
    assert welch(Sample((100.1, 100.4, 99.9)), Sample((103, 101, 105))) == pytest.approx(0.12894775914905568, rel=1e-6)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_means_as_far_apart_as_the_least_difference_have_the_given_p_value(p: float) -> None:
    first, second = Sample((1, 2, 4)), Sample((3, 5, 6.5, 7))
    least = least_difference(first, second, p)
    moved = Sample(tuple(value - second.mean + first.mean + least for value in second.values))
    assert welch(first, moved) == pytest.approx(p, rel=1e-6)


def test_without_a_spread_chance_is_not_known() -> None:
    for pair in ((Sample((1,)), Sample((2, 3))), (Sample((1, 1)), Sample((2, 2)))):
        assert math.isnan(welch(*pair))
        assert math.isnan(least_difference(*pair, 0.05))


def test_a_verdict_hangs_on_the_spread() -> None:
    reference = Sample((100.0, 101.0, 102.0))
    assert verdict("B", Sample((100.5, 101.5, 102.6)), "A", reference) == (
        "B against A: +0.53, not significant (Welch's t-test, p = 0.56; from 2.33 on it would be)."
    )
    assert verdict("B", Sample((91.0, 92.0, 93.0)), "A", reference).startswith("B against A: -9.00, significant")
    assert verdict("B", Sample((91.0,)), "A", reference) == (
        "B against A: -10.00; without a spread this is not distinguishable from chance."
    )
    assert verdict("B", None, "A", reference) == "B against A: not measured."


def test_agreement_with_the_paper_is_read_from_the_figures() -> None:
    same, alike = Sample((100.0, 101.0, 102.0)), Sample((100.5, 101.5, 101.9))
    worse, better = Sample((120.0, 121.0, 122.0)), Sample((80.0, 81.0, 82.0))
    all_alike: dict[Cell, Sample | None] = {"lstm": same, "peephole": alike, "cifg": alike, "peephole-cifg": same}
    reported = agreement(all_alike)
    assert "these results agree" in reported
    assert f"coupled LSTM against LSTM from {least_difference(alike, same, 0.05):.1f} on" in reported
    assert "these results agree" in agreement(all_alike | {"cifg": better})
    assert "these results agree" in agreement(all_alike | {"peephole": worse}), "who leaves peepholes out loses nothing"
    assert agreement(all_alike | {"cifg": worse}).endswith(
        "these results do not agree: significantly worse is coupled LSTM against LSTM."
    )
    assert agreement(all_alike | {"peephole": better}).endswith(
        "significantly worse is LSTM against peephole LSTM and coupled peephole LSTM against peephole LSTM."
    )
    assert "is not measured" in agreement(all_alike | {"lstm": None})
    assert "is not measured" in agreement({"lstm": same, "cifg": same})
    assert "don't decide it" in agreement(all_alike | {"cifg": Sample((100.0,))})


def test_perplexities_since_an_epochs_start_become_perplexities_since_the_last_point() -> None:
    costs = [3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0]  # of the windows of two epochs of four
    steps = [0, 2, 4, 6, 7]
    running = [(step, math.exp(np.mean(costs[step // 4 * 4 : step + 1]))) for step in steps]
    recent = [math.log(perplexity) for _, perplexity in recent_perplexities(running, windows=4)]
    assert recent == pytest.approx([3.0, 1.5, 5.0, 6.5, 8.0])


def test_a_step_that_a_resumed_run_did_again_counts_once(tmp_path: Path) -> None:
    for values in ({0: 9.0, 100: 5.0}, {100: 4.0, 200: 3.0}):  # killed after step 100, resumed before it
        with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
            for step, value in values.items():
                writer.add_scalar("cost", value, step)
    assert Run(tmp_path).logged("cost") == [(0, 9.0), (100, 4.0), (200, 3.0)]


# The command


@pytest.fixture
def toy(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny corpus stands for the Penn Treebank, drawn digits for MNIST; the clock runs for few steps."""
    monkeypatch.setattr("training.language_model.data.penn_treebank", lambda folder: source)
    monkeypatch.setattr("training.digits.data.load", lambda folder: drawn_corpus())
    monkeypatch.setattr(gradients, "SEQUENCES", 4)
    monkeypatch.setattr(latency, "WARM", 1)
    monkeypatch.setattr(latency, "TIMED", 3)


@pytest.fixture
def command(toy: None, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run `python -m training cells` at toy size."""

    def run(*arguments: object) -> None:
        vocabulary = ("--language-model.vocabulary-size", len(corpus.vocabulary))
        monkeypatch.setattr(sys, "argv", ["training", "cells", *map(str, (*SIZES, *vocabulary, *arguments))])
        main()

    return run


def rows_of(page: str, section: str, table: int = 0) -> dict[str, list[str]]:
    """The rows of one of a section's tables by cell."""
    found = page.split(f"## {section}")[1].split("\n## ")[0].split("\n\n")
    lines = [part for part in found if part.startswith("|")][table].splitlines()
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_whole_comparison_is_measured_once_and_reported_as_measured(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("--run", tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report" / "README.md")
    page = (tmp_path / "report" / "README.md").read_text()
    assert "ot measured" not in page
    assert "$" not in page

    def stored(part: str, cell: str, variant: str) -> Any:
        return json.loads((tmp_path / part / cell / variant / "figures.json").read_text())

    search, models = (rows_of(page, "Language models", table) for table in (0, 1))
    readers, adders = (rows_of(page, name) for name in ("MNIST", "The adding problem"))
    assert list(search) == list(models) == list(readers) == list(adders) == [CELL_NAMES[cell] for cell in CELLS]
    for cell in CELLS:
        name = CELL_NAMES[cell]
        seeds = [stored("ptb", cell, f"seed-{seed}") for seed in (1, 2)]
        tests = [results["test_perplexity"] for results in seeds]
        tried = {rate: stored("rates", cell, f"rate-{rate:g}")["valid_perplexity"] for rate in (0.001, 0.1)}
        chosen = min(tried, key=lambda rate: tried[rate])
        assert search[name] == [*(f"{perplexity:.1f}" for perplexity in tried.values()), f"{chosen:g}"]
        assert {results["config"]["learning_rate"] for results in seeds} == {chosen}
        assert models[name][0] == str(seeds[0]["config"]["hidden_sizes"][0])
        assert models[name][1] == f"{seeds[0]['parameters']:,}"
        assert models[name][3] == f"{np.mean(tests):.1f} ± {np.std(tests, ddof=1):.1f}"
        assert models[name][4] == f"{np.median([results['tokens_per_second'] for results in seeds]):,.0f}"
        taken = [stored("latency", cell, f"seed-{seed}")["step_milliseconds"] for seed in (1, 2)]
        assert models[name][5] == f"{np.median(taken):.3f}"
        accuracies = [100 * stored("mnist", cell, f"seed-{seed}")["test_accuracy"] for seed in (1, 2)]
        assert readers[name][2] == f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}"
        assert adders[name][2].startswith(f"{stored('adding', cell, 'length-4')['error']:.5f} (rate 0.01")
        assert adders[name][3].startswith(f"{stored('adding', cell, 'length-6')['error']:.5f} (rate 0.01")
    assert "A rate at the edge of those tried was the best for tanh RNN (" in page
    listed = json.loads((tmp_path / "report" / "figures.json").read_text())
    assert len(listed) == 6 * (2 + 2 + 2 + 2 + 2 + 2)
    for part in ("ptb", "mnist", "adding", "gradients"):
        assert (tmp_path / "report" / f"{part}.png").read_bytes().startswith(b"\x89PNG\r\n")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*/figures.json")}
    missing = tmp_path / "ptb" / "cifg" / "seed-2" / "figures.json"
    missing.rename(missing.with_suffix(".kept"))
    command("--run", tmp_path, "--part", "mnist", "--report", tmp_path / "again")
    assert "not measured: ptb/cifg/seed-2\n" in capsys.readouterr().out
    page = (tmp_path / "again" / "README.md").read_text()
    assert "**Not measured** (1): `ptb/cifg/seed-2`." in page
    assert rows_of(page, "Language models", 1)[CELL_NAMES["cifg"]][2:5] == ["not measured"] * 3
    assert "coupled LSTM against LSTM: not measured." in page
    missing.with_suffix(".kept").rename(missing)
    assert before == {path: path.stat().st_mtime_ns for path in before}, "nothing is measured twice"


def test_a_report_of_one_part_says_that_the_others_are_not_measured(
    command: Callable[..., None], tmp_path: Path
) -> None:
    command("--run", tmp_path, "--part", "adding", "--cells", "gru", "--lengths", 4)
    page = (tmp_path / "report" / "README.md").read_text()
    assert page.count("No plot: not measured.") == 3
    assert "**Not measured** (10): `rates/gru/rate-0.001`, `rates/gru/rate-0.1`, `ptb/gru/seed-1`" in page
    assert rows_of(page, "Language models")["GRU"] == ["not measured"] * 3
    assert rows_of(page, "Language models", 1)["GRU"][1:] == ["not measured"] * 5
    assert rows_of(page, "MNIST")["GRU"][1:] == ["not measured"] * 3
    assert "not measured" not in " ".join(rows_of(page, "The adding problem")["GRU"])


def only_adding(**changes: Any) -> Comparison:
    return Comparison(cells=("rnn", "cifg"), seeds=(1,), lengths=(6,), adding=replace(TINY, **changes))


def test_runs_side_by_side_measure_what_they_do_one_after_the_other(tmp_path: Path) -> None:
    jobs = plan(only_adding(), "adding")
    for processes in (1, 2):
        measure(only_adding(), tmp_path / str(processes), Corpora(), ["adding"], processes)
    for job in jobs:
        alone, beside = (results_of(job, tmp_path / str(processes)) for processes in (1, 2))
        assert alone is not None
        assert beside is not None
        assert alone["curve"] == beside["curve"]


def test_figures_of_another_configuration_are_rejected(tmp_path: Path) -> None:
    measure(only_adding(), tmp_path, Corpora(), ["adding"])
    with pytest.raises(RunError, match=r"rnn/length-6/figures.json: measured with another configuration"):
        measure(only_adding(seed=2), tmp_path, Corpora(), ["adding"])


def test_gradients_need_a_trained_model(tmp_path: Path) -> None:
    job = plan(only_adding(), "gradients")[0]
    with pytest.raises(RunError, match=f"{job.name}: expected adding/rnn/length-6 to be measured first"):
        perform(job, tmp_path, Corpora())


def tried(comparison: Comparison, perplexities: dict[tuple[Cell, float], float]) -> dict[Job, Results]:
    """A search with these validation perplexities by cell and rate."""
    found = {}
    for job in plan(comparison, "rates"):
        rate = job.config.learning_rate  # type: ignore[union-attr]
        if (job.cell, rate) in perplexities:
            results = {"config": asdict(job.config), "valid_perplexity": perplexities[job.cell, rate]}
            found[job] = json.loads(json.dumps(results))
    return found


def test_each_cell_trains_with_its_own_best_rate() -> None:
    comparison = Comparison(cells=("rnn", "gru"), seeds=(7, 8), rates=(0.1, 0.2, 0.3))
    found: dict[tuple[Cell, float], float] = {("rnn", 0.1): 200, ("rnn", 0.2): 250, ("rnn", 0.3): math.nan}
    found |= {("gru", 0.1): 200, ("gru", 0.2): 150, ("gru", 0.3): 180}
    rates = best_rates(tried(comparison, found))
    assert rates == {"rnn": 0.1, "gru": 0.2}
    for part in ("ptb", "latency", "gradients"):
        for job in plan(comparison, part, rates):
            if isinstance(job.config, LanguageModelConfig):
                assert job.config.learning_rate == rates[job.cell]
                assert job.config.epochs == comparison.language_model.epochs


def test_a_diverged_run_is_chosen_last_in_any_order() -> None:
    comparison = Comparison(cells=("rnn",), rates=(0.1, 0.2, 0.3))
    assert best_rates(tried(comparison, {("rnn", 0.1): math.nan, ("rnn", 0.2): 9e9})) == {"rnn": 0.2}


def test_the_search_has_the_recipe_and_the_first_seed_and_one_epoch() -> None:
    comparison = Comparison(cells=("lstm", "gru"), seeds=(7, 8), rates=(0.1, 0.2))
    jobs = plan(comparison, "rates")
    names = [f"rates/{cell}/rate-{rate}" for rate in (0.1, 0.2) for cell in ("lstm", "gru")]
    assert [job.name for job in jobs] == names
    assert jobs[0].config == replace(comparison.language_model, seed=7, epochs=1, learning_rate=0.1)


@pytest.mark.parametrize("part", ["ptb", "gradients", "latency"])
def test_no_language_model_is_trained_before_the_search_is_done(part: Part, tmp_path: Path) -> None:
    comparison = Comparison(cells=("gru",), rates=(0.1, 0.2))
    done = tmp_path / "rates" / "gru" / "rate-0.1" / "figures.json"
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({"config": asdict(plan(comparison, "rates")[0].config), "valid_perplexity": 100.0}))
    with pytest.raises(RunError, match=r"search of the learning rates comes first; .*: rates/gru/rate-0.2$"):
        measure(comparison, tmp_path, Corpora(), [part])


def test_a_job_that_fails_leaves_no_figures_and_the_threads_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert torch.get_num_threads() == 1
        raise RunError("broken")

    monkeypatch.setitem(comparison.MEASURES, "adding", fail)
    threads, (job, _) = torch.get_num_threads(), plan(only_adding(), "adding")
    with pytest.raises(RunError, match="broken"):
        perform(job, tmp_path, Corpora())
    assert torch.get_num_threads() == threads
    assert results_of(job, tmp_path) is None


def test_sigterm_stops_the_comparison_and_a_repeated_command_continues(
    toy: None, tmp_path: Path, after_step: Callable[[Callable[[dict[str, Any]], None]], None]
) -> None:
    config = DigitsConfig(hidden_sizes=(8,), batch_size=20, samples=60)
    job, *_ = plan(Comparison(cells=("rnn",), digits=config), "mnist")
    steps: list[int] = []

    def interrupt(state: dict[str, Any]) -> None:
        steps.append(state["progress"]["step"])
        if steps == [1]:
            os.kill(os.getpid(), signal.SIGTERM)

    after_step(interrupt)
    with pytest.raises(RunError, match=f"^{job.name}: the training was stopped; repeat the command to continue$"):
        perform(job, tmp_path, Corpora())
    perform(job, tmp_path, Corpora())
    assert steps == [1, 2, 3]
    assert results_of(job, tmp_path) is not None


def test_each_part_comes_after_those_that_it_needs() -> None:
    assert PARTS.index("gradients") > max(PARTS.index("ptb"), PARTS.index("adding"))
    assert PARTS.index("latency") > PARTS.index("ptb") > PARTS.index("rates")
