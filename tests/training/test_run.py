"""A run that was stopped or killed, and resumed, ends as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from training.language_model.data import SPLITS, Corpus, Source
from training.language_model.recipe import PRESETS, LanguageModelConfig, train
from training.run import Run, RunError

AfterStep = Callable[[Callable[[dict[str, Any]], None]], None]
Shrink = Callable[[str], LanguageModelConfig]
TIMINGS = ("seconds", "tokens_per_second")


def same(one: Any, other: Any) -> bool:
    """Return whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same_run(one: Run, other: Run) -> None:
    first, second = (torch.load(run.checkpoint) for run in (one, other))
    for part in ("model", "optimiser", "schedule", "progress"):
        assert same(first[part], second[part]), part
    assert untimed(one) == untimed(other)
    assert one.read("result.json") == other.read("result.json")


def untimed(run: Run) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if key not in TIMINGS} for entry in run.metrics()]


# stopped and killed


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_stopped_after_every_step_ends_as_an_undisturbed_one(
    preset: str, shrunk: Shrink, corpus: Corpus, tmp_path: Path
) -> None:
    config, whole, pieces = shrunk(preset), Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    train(config, corpus, whole)
    stops = 0
    while not train(config, corpus, pieces, resume=True, minutes=0):
        stops += 1
        torch.rand(stops)  # what else drew numbers in between must not matter
    windows = (len(corpus.train) - 1) // (config.batch_size * config.steps)
    assert stops == config.epochs * windows
    assert_same_run(whole, pieces)


def test_sigterm_ends_the_work_after_the_step_and_a_second_one_the_process(
    shrunk: Shrink, corpus: Corpus, finished: Run, tmp_path: Path, after_step: AfterStep
) -> None:
    handlers = []

    def interrupt(state: dict[str, Any]) -> None:
        if state["progress"]["window"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            handlers.append(signal.getsignal(signal.SIGTERM))

    after_step(interrupt)
    run = Run(tmp_path / "run")
    assert not train(shrunk("cpu"), corpus, run)
    assert handlers == [signal.SIG_DFL]
    assert torch.load(run.checkpoint)["progress"]["window"] == 3
    assert train(shrunk("cpu"), corpus, run, resume=True, minutes=60) is False  # in the second epoch
    assert train(shrunk("cpu"), corpus, run, resume=True)
    assert_same_run(finished, run)


class KilledError(Exception):
    """Stands for a process that ends here: all it knew is lost, but for its folder."""


class Doomed(Run):
    """A run that is killed at its nth chance to be."""

    def __init__(self, folder: Path, moment: str, nth: int) -> None:
        super().__init__(folder, saved_every=0)
        self.moment, self.left = moment, nth

    def passes(self, moment: str) -> None:
        self.left -= moment == self.moment
        if self.left == 0:
            raise KilledError

    def save(self, fabric: Fabric, state: dict[str, Any]) -> None:
        if self.moment == "while saving" and self.left == 1:
            self.checkpoint.with_suffix(".partial").write_bytes(b"half a checkpoint")
        self.passes("while saving")
        super().save(fabric, state)
        self.passes("after saving")

    def record(self, metrics: Mapping[str, float]) -> None:
        self.passes("before recording")
        super().record(metrics)
        self.passes("after recording")

    def finish(self, results: Mapping[str, float]) -> None:
        self.passes("before finishing")
        super().finish(results)


@pytest.mark.parametrize(
    ("moment", "nth"),
    [
        ("while saving", 1),  # before there is any checkpoint
        ("while saving", 3),
        ("after saving", 2),
        ("after saving", 5),
        ("before recording", 1),
        ("before recording", 2),
        ("after recording", 1),
        ("after recording", 2),
        ("before finishing", 1),
    ],
)
def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(
    moment: str, nth: int, shrunk: Shrink, corpus: Corpus, finished: Run, tmp_path: Path
) -> None:
    config, folder = shrunk("cpu"), tmp_path / "run"
    with pytest.raises(KilledError):
        train(config, corpus, Doomed(folder, moment, nth))
    assert train(config, corpus, Run(folder), resume=True)
    assert_same_run(finished, Run(folder))


SAVES_EVERY_STEP = """
import training.__main__ as command_line
from training.run import Run
command_line.Run = lambda folder, saved_every: Run(folder, saved_every=0)
command_line.main()
"""


def test_a_killed_process_is_resumed(source: Source, corpus: Corpus, shrunk: Shrink, tmp_path: Path) -> None:
    config = replace(shrunk("chapter"), epochs=40)
    sizes = {
        "embedding-size": [12],
        "hidden-sizes": config.hidden_sizes,
        "batch-size": [4],
        "steps": [6],
        "epochs": [40],
    }
    arguments = [str(part) for name, values in sizes.items() for part in (f"--{name}", *values)]
    texts = [str(part) for split in SPLITS for part in (f"--{split}", source.files[split])]
    command = [sys.executable, "-c", SAVES_EVERY_STEP, "language-model", "chapter", "--run", str(tmp_path / "killed")]
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(
        [*command, *arguments, *texts],
        cwd=Path(__file__).parents[2],
        env=os.environ | one_thread,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        reached = any(line.startswith("epoch 3:") for line in child.stdout)
        child.kill()
    assert reached
    assert child.returncode == -signal.SIGKILL

    killed, whole = Run(tmp_path / "killed"), Run(tmp_path / "whole")
    assert torch.load(killed.checkpoint)["progress"]["epoch"] < config.epochs
    assert train(config, corpus, killed, resume=True)
    train(config, corpus, whole)
    assert_same_run(whole, killed)


# what a run leaves, and what it refuses


def test_a_run_leaves_its_configuration_its_data_and_its_environment(
    finished: Run, source: Source, corpus: Corpus, shrunk: Shrink
) -> None:
    assert LanguageModelConfig(**finished.read("config.json") | {"hidden_sizes": (16, 12)}) == shrunk("cpu")
    described = finished.read("source.json")
    assert (described["name"], described["terms"], described["sha256"]) == ("tiny", "free for all", corpus.sha256)
    assert described["files"] == {split: str(path) for split, path in source.files.items()}
    assert described["caveats"] == list(source.caveats)
    environment = finished.read("environment.json")
    assert (environment["family"], environment["torch"]) == ("language_model", torch.__version__)
    assert list(finished.folder.glob("tensorboard/events*"))
    assert not list(finished.folder.glob("*.partial"))


def test_metrics_are_recorded_epoch_by_epoch(finished: Run) -> None:
    assert [entry["epoch"] for entry in finished.metrics()] == [1, 2]
    assert finished.metrics()[0].keys() == {"epoch", "train_perplexity", "valid_perplexity", "learning_rate", *TIMINGS}
    assert finished.read("result.json").keys() == {"test_perplexity"}


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Run:
    """A finished run that a test may change."""
    shutil.copytree(finished.folder, tmp_path / "copied")
    return Run(tmp_path / "copied")


def test_starting_over_an_existing_run_is_rejected(copied: Run, corpus: Corpus, shrunk: Shrink) -> None:
    before = {path.name: path.read_bytes() for path in copied.folder.iterdir() if path.is_file()}
    with pytest.raises(RunError, match=f"{copied.folder}: holds a run already; go on with --resume"):
        train(shrunk("cpu"), corpus, copied)
    assert {path.name: path.read_bytes() for path in copied.folder.iterdir() if path.is_file()} == before


def test_resuming_with_another_configuration_is_rejected_by_field(copied: Run, corpus: Corpus, shrunk: Shrink) -> None:
    other = replace(shrunk("cpu"), seed=5, hidden_sizes=(20, 12))
    with pytest.raises(RunError) as refusal:
        train(other, corpus, copied, resume=True)
    message = (
        f"{copied.folder}: started with another configuration: hidden_sizes is [20, 12], was [16, 12]; seed is 5, was 1"
    )
    assert str(refusal.value) == message


def test_resuming_on_other_texts_is_rejected_by_split(copied: Run, corpus: Corpus, shrunk: Shrink) -> None:
    other = replace(corpus, sha256=corpus.sha256 | {"valid": "0" * 64})
    with pytest.raises(RunError) as refusal:
        train(shrunk("cpu"), other, copied, resume=True)
    message = f"started on other texts: sha256 of valid is {'0' * 64}, was {corpus.sha256['valid']}"
    assert str(refusal.value) == f"{copied.folder}: {message}"
    fewer = replace(corpus, sha256={split: corpus.sha256[split] for split in ("train", "test")})
    with pytest.raises(RunError, match="started on other texts: sha256 of valid is None, was"):
        train(shrunk("cpu"), fewer, copied, resume=True)


def test_resuming_a_finished_run_changes_nothing(copied: Run, finished: Run, corpus: Corpus, shrunk: Shrink) -> None:
    assert train(shrunk("cpu"), corpus, copied, resume=True)
    assert_same_run(finished, copied)


def test_resuming_where_nothing_is_starts(corpus: Corpus, shrunk: Shrink, finished: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "new")
    assert train(shrunk("cpu"), corpus, run, resume=True)
    assert_same_run(finished, run)


def test_a_checkpoint_is_saved_when_it_is_due(corpus: Corpus, shrunk: Shrink, tmp_path: Path) -> None:
    saves: list[int] = []

    class Counted(Run):
        def save(self, fabric: Fabric, state: dict[str, Any]) -> None:  # noqa: ARG002
            saves.append(state["progress"]["window"])

    train(shrunk("cpu"), corpus, Counted(tmp_path / "rarely"))
    assert saves == [0, 0]  # at the end of each epoch
    saves.clear()
    train(shrunk("cpu"), corpus, Counted(tmp_path / "always", saved_every=0))
    assert saves == [1, 2, 3, 4, 0, 1, 2, 3, 4, 0]


def test_the_folder_of_no_run_is_rejected_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path}/config.json: no such file: is {tmp_path} the folder of a run?"):
        Run(tmp_path).read("config.json")


@pytest.mark.parametrize("content", [b"", b'{"epochs": ', b"\xff"])
def test_a_file_that_is_no_json_is_rejected_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=f"^{tmp_path}/config.json: expected JSON, found invalid content: .+$"):
        Run(tmp_path).read("config.json")
