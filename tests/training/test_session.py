"""Training in several processes: the weights of one process, exact resume, a killed process."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.errors import SettingsError
from tests.training import ranks
from tests.training.test_run import assert_same_run
from training.language_model.data import SPLITS, Source
from training.run import Run, RunError
from training.session import Session, launch

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of `tests.training.ranks` in two processes of one thread."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.training.ranks", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | ONE_THREAD, check=True)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in this process."""
    folder = tmp_path_factory.mktemp("one")
    ranks.train_all(folder)
    return folder


@pytest.mark.parametrize("recipe", ["language-model", "subword-language-model", "digits", "captions"])
def test_two_processes_end_with_the_weights_of_one(recipe: str, one: Path, two: Path) -> None:
    expected, found = (torch.load(folder / recipe / "checkpoint.pt") for folder in (one, two))
    for part in {"model", "average", "averaged"} & expected.keys():
        for name, weight in expected[part].items():
            torch.testing.assert_close(found[part][name], weight, rtol=0, atol=1e-5)
    metrics = [Run(folder / recipe).metrics() for folder in (one, two)]
    for first, second in zip(*metrics, strict=True):
        measured = [name for name in first if name.startswith(("train", "valid"))]
        assert [second[name] for name in measured] == pytest.approx([first[name] for name in measured], rel=1e-4)


def test_processes_draw_random_numbers_of_their_own(one: Path, two: Path) -> None:
    first, second = (torch.load(run / "whole" / "checkpoint.pt")["model"]["embedding.weight"] for run in (one, two))
    assert not torch.allclose(first, second, atol=1e-4)


def test_processes_stopped_after_every_step_end_as_undisturbed_ones(two: Path) -> None:
    assert_same_run(Run(two / "whole"), Run(two / "pieces"))


@pytest.mark.timeout(600)  # three processes import torch
def test_sigterm_stops_all_processes_after_a_checkpoint(source: Source, tmp_path: Path) -> None:
    texts = [str(part) for split in SPLITS for part in (f"--{split}", source.files[split])]
    sizes = ["--embedding-size", "12", "--hidden-sizes", "12", "--batch-size", "4", "--steps", "6"]
    command = [sys.executable, "-m", "training", "language-model", "chapter", "--run", str(tmp_path), *texts, *sizes]
    command += ["--processes", "2", "--epochs", "10000"]
    environment = os.environ | ONE_THREAD | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True) as training:
        assert training.stdout is not None
        assert any(line.startswith("epoch 2:") for line in training.stdout)
        training.terminate()
        output, errors = training.communicate()
    assert training.returncode == 0, errors
    assert output.splitlines()[-1] == f"{tmp_path}: stopped after 0 minutes; go on with --resume"
    assert torch.load(tmp_path / "checkpoint.pt")["progress"]["epoch"] >= 1


def test_a_killed_process_ends_the_run_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else signal.pause()"
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", script])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RunError, match=r"^process 1 of 2 ended with SIGKILL; go on with --resume$"):
            launch(2)
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_the_number_of_processes_divides_the_batch(tmp_path: Path) -> None:
    session = Session(Run(tmp_path), "32-true", seed=1, minutes=math.inf)
    session.rank, session.ranks = 1, 3
    assert session.share(12) == slice(4, 8)
    with pytest.raises(SettingsError, match=r"^batch_size: expected a multiple of the 3 processes, found 10$"):
        session.share(10)
