"""The jobs of the comparison. Results are stored, so that a repeated command continues.

root/part/cell/variant/figures.json     the results of one job, with its configuration
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import nn

from app.models.recurrent import CELLS, Cell
from training.cells import adding
from training.cells.adding import Adder, AddingConfig
from training.cells.gradients import adding_gradients, language_model_gradients
from training.cells.latency import step_milliseconds
from training.cells.sizes import matched, parameters
from training.digits import data as mnist
from training.digits import recipe as digits
from training.digits.data import DigitCorpus
from training.digits.publish import trained as trained_reader
from training.digits.recipe import DigitsConfig
from training.language_model import data as texts
from training.language_model import recipe as language_model
from training.language_model.data import Corpus
from training.language_model.publish import trained as trained_language_model
from training.language_model.recipe import LanguageModelConfig
from training.ranges import Range, require_ranges
from training.run import Run, RunError, environment

Part: TypeAlias = Literal["rates", "ptb", "mnist", "adding", "gradients", "latency"]
PARTS: tuple[Part, ...] = get_args(Part)  # in the order in which they can be measured
Config: TypeAlias = LanguageModelConfig | DigitsConfig | AddingConfig
Results: TypeAlias = dict[str, Any]

SEARCH_EPOCHS = 1  # of a run that tries a learning rate
SEARCHED: tuple[Part, ...] = ("ptb", "gradients", "latency")  # parts that use the rates found

LANGUAGE_MODEL = LanguageModelConfig(  # a small `cpu`; each cell has its own learning rate
    embedding_size=128,
    hidden_sizes=(160, 128),
    tied=True,
    input_dropout=0.1,
    hidden_dropout=0.1,
    output_dropout=0.1,
    weight_drop=0.1,
    locked=True,
    activation_penalty=2.0,  # without it, or with wider weights, the tanh RNN saturates and hardly learns
    change_penalty=1.0,
    batch_size=32,
    cost="mean",
    optimiser="adamw",
    schedule="one-cycle",
    weight_decay=0.02,
    clip=0.25,
    epochs=3,
    precision="bf16-mixed",
    evaluation_batch=16,
)
DIGITS = DigitsConfig(
    hidden_sizes=(96,),
    samples=110_000,
    optimiser="adamw",
    learning_rate=4e-3,
    schedule="one-cycle",
    clip=1.0,
)
ADDING = AddingConfig()


@dataclass(frozen=True)
class Comparison:
    """The cells and, for each task, the recipe of one of them; the others get as many parameters by their width.

    Raise SettingsError that names every field out of its range.
    """

    cells: tuple[Cell, ...] = CELLS
    seeds: tuple[int, ...] = (1, 2, 3)  # of the language models and the digit readers
    rates: tuple[float, ...] = (3e-3, 9e-3, 2.7e-2)  # tried for each cell's language model
    lengths: tuple[int, ...] = (400, 100)  # of the adding problem
    language_model: LanguageModelConfig = LANGUAGE_MODEL
    digits: DigitsConfig = DIGITS
    adding: AddingConfig = ADDING

    def __post_init__(self) -> None:
        require_ranges(self, _RANGES)


_RANGES: tuple[Range, ...] = (
    (f"some of {', '.join(CELLS)}", lambda value: value in CELLS, ("cells",)),
    ("0 to 2^40", lambda value: 0 <= value <= 2**40, ("seeds",)),
    ("a number above 0", lambda value: 0 < value < math.inf, ("rates",)),
    ("4 or more", lambda value: value >= 4, ("lengths",)),
)


@dataclass(frozen=True)
class Job:
    """One measurement."""

    part: Part
    cell: Cell
    variant: str
    config: Config  # of the model that is trained or examined

    @property
    def name(self) -> str:
        """Return the name in reports and the path of the folder below the root."""
        return f"{self.part}/{self.cell}/{self.variant}"


Measured: TypeAlias = Mapping[Job, Results]


@dataclass(frozen=True)
class Corpora:
    """The folders that hold the Penn Treebank and MNIST/raw; None: downloaded once."""

    ptb: Path | None = None
    mnist: Path | None = None

    def texts(self, vocabulary_size: int) -> Corpus:
        """The Penn Treebank."""
        return texts.load(texts.penn_treebank(self.ptb), vocabulary_size)

    def digits(self) -> DigitCorpus:
        """MNIST."""
        return mnist.load(self.mnist)


BUILD: dict[type[Config], Callable[[Any], nn.Module]] = {
    LanguageModelConfig: language_model.build,
    DigitsConfig: digits.build,
    AddingConfig: Adder,
}


def plan(comparison: Comparison, part: Part, rates: Mapping[Cell, float] | None = None) -> list[Job]:
    """Return all jobs of a part, the first seed of every cell before the second.

    `rates`: the language models' learning rates by cell, from `best_rates`; by default the recipe's own.
    """
    cells, seeds, model = comparison.cells, comparison.seeds, comparison.language_model
    own = dict.fromkeys(cells, model.learning_rate) | dict(rates or {})
    match part:
        case "rates":
            tried = replace(model, epochs=SEARCH_EPOCHS, seed=seeds[0])
            return [
                Job(part, c, f"rate-{r:g}", _of(tried, c, learning_rate=r)) for r in comparison.rates for c in cells
            ]
        case "ptb" | "latency":
            return [
                Job(part, c, f"seed-{s}", _of(model, c, seed=s, learning_rate=own[c])) for s in seeds for c in cells
            ]
        case "mnist":
            return [Job(part, c, f"seed-{s}", _of(comparison.digits, c, seed=s)) for s in seeds for c in cells]
        case "adding":
            return [
                Job(part, c, f"length-{n}", _of(comparison.adding, c, length=n))
                for n in comparison.lengths
                for c in cells
            ]
        case "gradients":
            trained = [*plan(comparison, "adding"), *plan(comparison, "ptb", rates)]
            examined = (f"length-{max(comparison.lengths)}", f"seed-{seeds[0]}")
            return [replace(job, part=part) for job in trained if job.variant in examined]


def _of(reference: Any, cell: Cell, **changes: float) -> Any:
    return replace(matched(reference, cell, BUILD[type(reference)]), **changes)


def best_rates(measured: Measured) -> dict[Cell, float]:
    """Return for each cell the learning rate with the lowest validation perplexity of the search."""
    tried: dict[Cell, list[Results]] = {}
    for job, results in measured.items():
        if job.part == "rates":
            tried.setdefault(job.cell, []).append(results)
    return {cell: min(runs, key=_validation)["config"]["learning_rate"] for cell, runs in tried.items()}


def _validation(results: Results) -> float:
    """Return the validation perplexity, infinite for a run that diverged."""
    perplexity: float = results["valid_perplexity"]
    return math.inf if math.isnan(perplexity) else perplexity


def searched(comparison: Comparison, root: Path) -> dict[Cell, float]:
    """Return the best rate of every cell; raise RunError that names the unfinished jobs of the search."""
    jobs = plan(comparison, "rates")
    measured = measured_of(jobs, root)
    missing = [job.name for job in jobs if job not in measured]
    if missing:
        raise RunError(f"the search of the learning rates comes first; not measured yet: {', '.join(missing)}")
    return best_rates(measured)


def measure(
    comparison: Comparison, root: Path, corpora: Corpora, parts: Iterable[Part] = PARTS, processes: int = 1
) -> None:
    """Run the unfinished jobs of the `parts`, `processes` jobs in parallel, each on one thread.

    The serving latency is always measured alone. Raise RunError, before a part starts, for a job done with another
    configuration and for language models without a search of the rates; also for a job that needs an untrained model.
    """
    for part in parts:
        rates = searched(comparison, root) if part in SEARCHED else None
        todo = [job for job in plan(comparison, part, rates) if results_of(job, root) is None]
        _fetch(todo, corpora)
        _perform_all(todo, root, corpora, 1 if part == "latency" else processes)


def measured_of(jobs: Iterable[Job], root: Path) -> dict[Job, Results]:
    """Return the results of the finished jobs."""
    found = {job: results_of(job, root) for job in jobs}
    return {job: results for job, results in found.items() if results is not None}


def results_of(job: Job, root: Path) -> Results | None:
    """Return the results of the job; None if it is not done. Raise RunError if it had another configuration."""
    path = root / job.name / "figures.json"
    if not path.exists():
        return None
    results: Results = json.loads(path.read_text())
    if results["config"] != json.loads(json.dumps(asdict(job.config))):
        raise RunError(f"{path}: measured with another configuration; choose another folder, or remove it")
    return results


def perform(job: Job, root: Path, corpora: Corpora) -> None:
    """Measure on one thread and store the results."""
    folder, threads, started = root / job.name, torch.get_num_threads(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        measured = MEASURES[job.part](job, root, corpora)
    finally:
        torch.set_num_threads(threads)
    results = {
        "config": asdict(job.config),
        "parameters": parameters(job.config, BUILD[type(job.config)]),
        "environment": environment(),
        "seconds": time.monotonic() - started,
        **measured,
    }
    partial_file = folder / "figures.partial"
    partial_file.write_text(json.dumps(results) + "\n")
    partial_file.replace(folder / "figures.json")


def _perform_all(todo: Sequence[Job], root: Path, corpora: Corpora, processes: int) -> None:
    """Run all jobs in parallel; then raise the first failure, if any."""
    work = partial(perform, root=root, corpora=corpora)
    if processes == 1 or len(todo) < 2:
        for job in todo:
            work(job)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(work, todo))


def _fetch(todo: Sequence[Job], corpora: Corpora) -> None:
    """Download and tokenise before parallel processes would."""
    for size in {job.config.vocabulary_size for job in todo if isinstance(job.config, LanguageModelConfig)}:
        corpora.texts(size)
    if any(isinstance(job.config, DigitsConfig) for job in todo):
        corpora.digits()


def logged(run: Run, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of everything a run logged under `name`; the last value of repeated steps."""
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    return list({event.step: event.value for event in events.Scalars(name)}.items())


def recent_perplexities(running: Sequence[tuple[int, float]], windows: int) -> list[tuple[int, float]]:
    """Perplexities since each epoch's start, `windows` an epoch -> since the point before, or the epoch's start."""
    curve, before, cost_before = [], -1, 0.0
    for step, perplexity in running:
        start = step - step % windows
        if before < start:
            before, cost_before = start - 1, 0.0
        cost = math.log(perplexity) * (step - start + 1)
        curve.append((step, math.exp((cost - cost_before) / (step - before))))
        before, cost_before = step, cost
    return curve


def _measure_rates(job: Job, root: Path, corpora: Corpora) -> Results:
    """Measure all but the test perplexity, which the search must not see."""
    assert isinstance(job.config, LanguageModelConfig)
    run, corpus = Run(root / job.name), corpora.texts(job.config.vocabulary_size)
    language_model.train(job.config, corpus, run, resume=True)
    epochs, windows = run.metrics(), (len(corpus.train) - 1) // (job.config.batch_size * job.config.steps)
    return {
        "valid_perplexity": epochs[-1]["valid_perplexity"],
        "tokens_per_second": statistics.median(epoch["tokens_per_second"] for epoch in epochs),
        "curve": recent_perplexities(logged(run, "perplexity/train"), windows),
    }


def _measure_ptb(job: Job, root: Path, corpora: Corpora) -> Results:
    results = _measure_rates(job, root, corpora)
    return {"test_perplexity": Run(root / job.name).read("result.json")["test_perplexity"], **results}


def _measure_mnist(job: Job, root: Path, corpora: Corpora) -> Results:
    assert isinstance(job.config, DigitsConfig)
    run, corpus = Run(root / job.name), corpora.digits()
    digits.train(job.config, corpus, run, resume=True)
    return {
        "test_accuracy": digits.accuracy(trained_reader(run, job.config), corpus.test),
        "valid_accuracy": run.read("result.json")["valid_accuracy"],
        "images_per_second": run.metrics()[-1]["images_per_second"],
        "curve": logged(run, "cost/train"),
    }


def _measure_adding(job: Job, root: Path, corpora: Corpora) -> Results:  # noqa: ARG001 - as all of MEASURES
    assert isinstance(job.config, AddingConfig)
    trials = adding.solve(job.config)
    best = min(trials, key=lambda trial: trial.error)
    torch.save(best.model.state_dict(), root / job.name / "weights.pt")
    return {
        "error": best.error,
        "solved_at": adding.solved_at(best.curve),
        "learning_rate": best.learning_rate,
        "curve": best.curve,
        "trials": {str(trial.learning_rate): trial.error for trial in trials},
    }


def _measure_gradients(job: Job, root: Path, corpora: Corpora) -> Results:
    if isinstance(job.config, AddingConfig):
        weights = torch.load(_trained(job, "adding", root) / "weights.pt", weights_only=True)
        return adding_gradients(job.config, weights)
    assert isinstance(job.config, LanguageModelConfig)
    model = trained_language_model(Run(_trained(job, "ptb", root)), job.config)
    return language_model_gradients(job.config, model, corpora.texts(job.config.vocabulary_size).valid)


def _measure_latency(job: Job, root: Path, corpora: Corpora) -> Results:
    assert isinstance(job.config, LanguageModelConfig)
    model = trained_language_model(Run(_trained(job, "ptb", root)), job.config)
    return {"step_milliseconds": step_milliseconds(model, corpora.texts(job.config.vocabulary_size).valid)}


def _trained(job: Job, part: Part, root: Path) -> Path:
    """Return the folder of the training that `job` examines; RunError if it is not done."""
    training = replace(job, part=part)
    if results_of(training, root) is None:
        raise RunError(f"{job.name}: expected {training.name} to be measured first")
    return root / training.name


MEASURES: dict[Part, Callable[[Job, Path, Corpora], Results]] = {
    "rates": _measure_rates,
    "ptb": _measure_ptb,
    "mnist": _measure_mnist,
    "adding": _measure_adding,
    "gradients": _measure_gradients,
    "latency": _measure_latency,
}
