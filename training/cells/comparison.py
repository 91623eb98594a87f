"""The jobs of the comparison. Results are stored, so that a repeated command continues.

root/part/cell/variant/figures.json     the results of one job, with its configuration
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from app.models.recurrent import Cell
from training.cells import adding
from training.cells.adding import AddingConfig
from training.cells.gradients import adding_gradients, language_model_gradients
from training.cells.latency import step_milliseconds
from training.cells.plan import BUILD, PARTS, SEARCHED, Comparison, Job, Part, Results, best_rates, plan
from training.cells.sizes import parameters
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
from training.run import Run, RunError, environment


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
    _require(language_model.train(job.config, corpus, run, resume=True), job)
    epochs, windows = run.metrics(), (len(corpus.train) - 1) // (job.config.batch_size * job.config.steps)
    return {
        "valid_perplexity": epochs[-1]["valid_perplexity"],
        "tokens_per_second": statistics.median(epoch["tokens_per_second"] for epoch in epochs),
        "curve": recent_perplexities(run.logged("perplexity/train"), windows),
    }


def _measure_mnist(job: Job, root: Path, corpora: Corpora) -> Results:
    assert isinstance(job.config, DigitsConfig)
    run, corpus = Run(root / job.name), corpora.digits()
    _require(digits.train(job.config, corpus, run, resume=True), job)
    return {
        "test_accuracy": digits.accuracy(trained_reader(run, job.config), corpus.test),
        "valid_accuracy": run.read("result.json")["valid_accuracy"],
        "images_per_second": run.metrics()[-1]["images_per_second"],
        "curve": run.logged("cost/train"),
    }


def _require(done: bool, job: Job) -> None:
    if not done:
        raise RunError(f"{job.name}: the training was stopped; repeat the command to continue")


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
    "ptb": lambda job, root, corpora: (
        _measure_rates(job, root, corpora)
        | {"test_perplexity": Run(root / job.name).read("result.json")["test_perplexity"]}
    ),
    "mnist": _measure_mnist,
    "adding": _measure_adding,
    "gradients": _measure_gradients,
    "latency": _measure_latency,
}
