"""The report of the comparison: a page with tables and plots, generated from measurements alone."""

import json
import math
import string
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from typing import TypeAlias

from app.models.recurrent import Cell
from training.cells import plots
from training.cells.adding import BASELINE, SOLVED
from training.cells.comparison import measured_of
from training.cells.gradients import SEQUENCES
from training.cells.plan import PARTS, SEARCH_EPOCHS, Comparison, Job, Measured, Part, Results, best_rates, plan
from training.cells.statistics import MISSING, SIGNIFICANT, Sample, least_difference, verdict, welch
from training.language_model.recipe import LanguageModelConfig
from training.publishing import CELL_NAMES

SIMPLER: tuple[tuple[Cell, Cell], ...] = (("lstm", "peephole"), ("cifg", "lstm"), ("peephole-cifg", "peephole"))
"""Pairs of Greff et al. 2015: a cell without peepholes or with coupled gates, and its reference."""

Row: TypeAlias = Sequence[str]


def write(comparison: Comparison, root: Path, folder: Path) -> list[str]:
    """Write README.md, its plots and figures.json into `folder`; return the names of the jobs that are not measured.

    The page lists these jobs and marks results that depend on them.
    """
    rates = best_rates(measured_of(plan(comparison, "rates"), root))
    jobs = [job for part in PARTS for job in plan(comparison, part, rates)]
    measured = measured_of(jobs, root)
    missing = [job.name for job in jobs if job not in measured]
    folder.mkdir(parents=True, exist_ok=True)
    template = string.Template(resources.files("training.cells").joinpath("card.md").read_text())
    page = template.substitute(
        made_of=_made_of(measured, missing),
        seeds=", ".join(map(str, comparison.seeds)),
        sequences=SEQUENCES,
        **_language_models(comparison, measured),
        **_digit_readers(comparison, measured),
        **_adding_problem(comparison, measured),
        gradients_table=_gradients_table(comparison, measured),
        **{f"{part}_plot": _plot(folder, part, measured) for part in PLOTS},
    )
    (folder / "README.md").write_text(page)
    entries = (_rounded({"name": job.name} | results) for job, results in measured.items())
    (folder / "figures.json").write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")  # a line a job
    return missing


def of_all_seeds(comparison: Comparison, measured: Measured, part: Part, cell: Cell, metric: str) -> Sample | None:
    """Return a metric of a cell; None if it is not measured for one of the seeds."""
    jobs = _jobs(comparison, measured, part, cell)
    if any(job not in measured for job in jobs):
        return None
    return Sample(tuple(measured[job][metric] for job in jobs))


def agreement(samples: Mapping[Cell, Sample | None]) -> str:
    """Return a comparison with Greff et al. 2015, who found no loss without peepholes or with coupled gates."""
    claim = "Greff et al. 2015 (arXiv 1503.04069) found no significant loss without peepholes or with coupled gates"
    pairs: dict[str, tuple[Sample, Sample]] = {}
    for cell, reference in SIMPLER:
        simple, full = samples.get(cell), samples.get(reference)
        if simple is None or full is None:
            return f"{claim}; whether these results agree is {MISSING}."
        pairs[f"{CELL_NAMES[cell]} against {CELL_NAMES[reference]}"] = (simple, full)
    chances = {name: welch(*pair) for name, pair in pairs.items()}
    if any(map(math.isnan, chances.values())):
        return f"{claim}; without a spread these results don't decide it."
    lost = [name for name, (simple, full) in pairs.items() if chances[name] < SIGNIFICANT and simple.mean > full.mean]
    if lost:
        return f"{claim}; these results do not agree: significantly worse is {' and '.join(lost)}."
    seen = ", ".join(f"{name} from {least_difference(*pair, SIGNIFICANT):.1f} on" for name, pair in pairs.items())
    return f"{claim}; these results agree. But so few seeds see large losses only: {seen}."


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _made_of(measured: Measured, missing: Sequence[str]) -> str:
    """Return a summary of the runs, their machines and missing measurements."""
    machines = {
        f"torch {each['environment']['torch']} on {each['environment']['machine']}" for each in measured.values()
    }
    minutes = sum(results["seconds"] for results in measured.values()) / 60
    summary = (
        f"{len(measured)} runs of one thread each, {minutes:.0f} minutes of them in all; {', '.join(sorted(machines))}."
    )
    if missing:
        summary += f"\n\n**Not measured** ({len(missing)}): {', '.join(f'`{name}`' for name in missing)}."
    return summary


def _language_models(comparison: Comparison, measured: Measured) -> dict[str, object]:
    config = comparison.language_model
    layers = "one layer"
    if count := len(config.hidden_sizes[1:]):
        narrower = " and ".join(map(str, config.hidden_sizes[1:]))
        layers = f"{1 + count} layers, the first as wide as the table says, then {narrower} units"
    return {
        "words": f"{config.vocabulary_size:,}",
        "embedding": f"{config.embedding_size}{', output tied to it' if config.tied else ''}",
        "layers": layers,
        "epochs": _epochs(config.epochs),
        "batch": config.batch_size,
        "steps": config.steps,
        "optimiser": config.optimiser,
        "rates": ", ".join(f"{rate:g}" for rate in comparison.rates),
        "search_epochs": _epochs(SEARCH_EPOCHS),
        "rate_count": len(comparison.rates),
        "first_seed": comparison.seeds[0],
        "rates_table": _rates_table(comparison, measured),
        "rates_edges": _edges(comparison, measured),
        "schedule": config.schedule,
        "clip": f"{config.clip:g}",
        "forget_bias": f"{config.forget_bias:g}",
        "regularisation": _regularisation(config),
        "precision": config.precision,
        "ptb_table": table(
            ["cell", "width", "parameters", "validation", "test", "training tokens a second", "ms a served step"],
            [_language_model_row(comparison, measured, cell) for cell in comparison.cells],
        ),
        "ptb_verdicts": _perplexity_verdicts(comparison, measured),
    }


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count > 1)}"


def _rates_table(comparison: Comparison, measured: Measured) -> str:
    """Validation perplexities of the search, a cell a row."""
    chosen, rows = best_rates(measured), []
    for cell in comparison.cells:
        found = [measured.get(job) for job in _jobs(comparison, measured, "rates", cell)]
        entries = [MISSING if results is None else f"{results['valid_perplexity']:.1f}" for results in found]
        rows.append([CELL_NAMES[cell], *entries, MISSING if None in found else f"{chosen[cell]:g}"])
    return table(["cell", *(f"at {rate:g}" for rate in comparison.rates), "chosen"], rows)


def _edges(comparison: Comparison, measured: Measured) -> str:
    """Return a sentence on best rates at the edge of the grid, which may be improvable."""
    edges = {min(comparison.rates): "lowest", max(comparison.rates): "highest"}
    found = [f"{CELL_NAMES[cell]} ({edges[rate]})" for cell, rate in best_rates(measured).items() if rate in edges]
    if not found:
        return ""
    return f"A rate at the edge of those tried was the best for {', '.join(found)}: one beyond may be better still."


def _regularisation(config: LanguageModelConfig) -> str:
    parts = {
        "input dropout": config.input_dropout,
        "hidden dropout": config.hidden_dropout,
        "output dropout": config.output_dropout,
        "recurrent dropout": config.weight_drop,
        "embedding dropout": config.embedding_dropout,
        "activation penalty": config.activation_penalty,
        "change penalty": config.change_penalty,
        "weight decay": config.weight_decay,
    }
    return ", ".join(f"{part} {value:g}" for part, value in parts.items() if value) or "no regularisation"


def _language_model_row(comparison: Comparison, measured: Measured, cell: Cell) -> Row:
    def sample(part: Part, metric: str) -> Sample | None:
        return of_all_seeds(comparison, measured, part, cell, metric)

    return [
        CELL_NAMES[cell],
        *_sizes(comparison, measured, "ptb", cell),
        _spread(sample("ptb", "valid_perplexity"), ".1f"),
        _spread(sample("ptb", "test_perplexity"), ".1f"),
        _median(sample("ptb", "tokens_per_second"), ",.0f"),
        _median(sample("latency", "step_milliseconds"), ".3f"),
    ]


def _perplexity_verdicts(comparison: Comparison, measured: Measured) -> str:
    tests = {cell: of_all_seeds(comparison, measured, "ptb", cell, "test_perplexity") for cell in comparison.cells}
    if "lstm" not in tests:
        return ""
    sentences = [
        verdict(CELL_NAMES[cell], tests[cell], CELL_NAMES["lstm"], tests["lstm"]) for cell in tests if cell != "lstm"
    ]
    return _list([*(f"Test perplexity, {sentence}" for sentence in sentences), agreement(tests)])


def _digit_readers(comparison: Comparison, measured: Measured) -> dict[str, object]:
    config = comparison.digits
    accuracies = {cell: of_all_seeds(comparison, measured, "mnist", cell, "test_accuracy") for cell in comparison.cells}
    percent = {cell: accuracy and accuracy.scaled(100) for cell, accuracy in accuracies.items()}
    rows = [
        [
            CELL_NAMES[cell],
            *_sizes(comparison, measured, "mnist", cell),
            _spread(percent[cell], ".2f"),
            _median(of_all_seeds(comparison, measured, "mnist", cell, "images_per_second"), ",.0f"),
        ]
        for cell in comparison.cells
    ]
    others = [cell for cell in percent if cell != "lstm" and "lstm" in percent]
    return {
        "images": f"{config.samples:,}",
        "digit_batch": config.batch_size,
        "digit_optimiser": config.optimiser,
        "digit_rate": f"{config.learning_rate:g}",
        "digit_schedule": config.schedule,
        "mnist_table": table(["cell", "width", "parameters", "test accuracy, %", "training images a second"], rows),
        "mnist_verdicts": _list(
            [
                f"Accuracy, {verdict(CELL_NAMES[cell], percent[cell], CELL_NAMES['lstm'], percent['lstm'])}"
                for cell in others
            ]
        ),
    }


def _adding_problem(comparison: Comparison, measured: Measured) -> dict[str, object]:
    config, lengths = comparison.adding, sorted(comparison.lengths)
    results = {(job.cell, job.variant): measured.get(job) for job in plan(comparison, "adding")}
    rows = [
        [
            CELL_NAMES[cell],
            *_sizes(comparison, measured, "adding", cell),
            *(_adding_entry(results[cell, f"length-{length}"]) for length in lengths),
        ]
        for cell in comparison.cells
    ]
    solved: dict[int, dict[Cell, str]] = {length: {} for length in lengths}
    for length, cell in product(lengths, comparison.cells):
        found = results[cell, f"length-{length}"]
        solved[length][cell] = MISSING if found is None else "solved" if found["error"] < SOLVED else "not solved"
    return {
        "baseline": f"{BASELINE:.3f}",
        "solved": f"{SOLVED:g}",
        "adding_steps": f"{config.steps:,}",
        "adding_batch": config.batch_size,
        "adding_clip": f"{config.clip:g}",
        "adding_rates": ", ".join(f"{rate:g}" for rate in config.learning_rates),
        "adding_table": table(["cell", "width", "parameters", *(f"error at {n}" for n in lengths)], rows),
        "adding_verdicts": _list([f"Length {length}: {_grouped(answers)}." for length, answers in solved.items()]),
    }


def _adding_entry(results: Results | None) -> str:
    if results is None:
        return MISSING
    when = "" if results["solved_at"] is None else f", solved after {results['solved_at']:,} steps"
    return f"{results['error']:.5f} (rate {results['learning_rate']:g}{when})"


def _grouped(answers: Mapping[Cell, str]) -> str:
    """`solved by LSTM, GRU; not solved by tanh RNN`."""
    groups: dict[str, list[str]] = {"solved": [], "not solved": [], MISSING: []}
    for cell, answer in answers.items():
        groups[answer].append(CELL_NAMES[cell])
    joined = {"solved": "solved by", "not solved": "not solved by", MISSING: f"{MISSING} for"}
    return "; ".join(f"{joined[answer]} {', '.join(names)}" for answer, names in groups.items() if names)


def _gradients_table(comparison: Comparison, measured: Measured) -> str:
    rows = []
    for job in _jobs(comparison, measured, "gradients"):
        results = measured.get(job)
        shares = [MISSING] * 2 if results is None else [_share(results["initial"]), _share(results["trained"])]
        rows.append([plots.task(job.variant), CELL_NAMES[job.cell], *shares])
    return table(["task", "cell", "before training", "trained"], sorted(rows, key=lambda row: row[0]))


def _share(norms: Sequence[float]) -> str:
    return f"{norms[-1] / norms[0]:.1e} (k = {len(norms) - 1})" if norms[0] else "no gradient at all"


def _sizes(comparison: Comparison, measured: Measured, part: Part, cell: Cell) -> Row:
    """Width and parameters of a cell's models."""
    job = _jobs(comparison, measured, part, cell)[0]
    results = measured.get(job)
    return [str(job.config.hidden_sizes[0]), MISSING if results is None else f"{results['parameters']:,}"]


def _jobs(comparison: Comparison, measured: Measured, part: Part, cell: Cell | None = None) -> list[Job]:
    """Return the jobs of a part, of one cell or of all."""
    return [job for job in plan(comparison, part, best_rates(measured)) if cell in (None, job.cell)]


def _spread(sample: Sample | None, form: str) -> str:
    if sample is None:
        return MISSING
    return f"{sample.mean:{form}}" + ("" if math.isnan(sample.deviation) else f" ± {sample.deviation:{form}}")


def _median(sample: Sample | None, form: str) -> str:
    return MISSING if sample is None else f"{sample.median:{form}}"


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


PLOTS: dict[Part, Callable[[Measured, Path], None]] = {
    "ptb": plots.perplexities,
    "mnist": plots.digit_costs,
    "adding": plots.adding_errors,
    "gradients": plots.gradients,
}


def _plot(folder: Path, part: Part, measured: Measured) -> str:
    if not any(job.part == part for job in measured):
        return f"No plot: {MISSING}."
    PLOTS[part]({job: results for job, results in measured.items() if job.part == part}, folder / f"{part}.png")
    return f"![{part}]({part}.png)"


def _rounded(value: object) -> object:
    """Round floats to five significant digits."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list():
            return [_rounded(each) for each in value]
        case _:
            return value
