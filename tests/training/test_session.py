"""Training in several processes: the weights of one process, exact resume, a killed process."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.errors import SettingsError
from tests.training import ranks
from tests.training.test_run import assert_same_run
from training import session as sessions
from training.captions import recipe as captions
from training.captions.attentive import recipe as attentive
from training.digits import number_recipe
from training.digits import recipe as digits
from training.language_model import recipe as language_model
from training.language_model import subword_recipe
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


@pytest.fixture
def own_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which `launch` replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("own_handler")
def test_a_killed_process_ends_the_run_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else signal.pause()"
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", script])
    with pytest.raises(RunError, match=r"^process 1 of 2 ended with SIGKILL; go on with --resume$"):
        launch(2)


@pytest.mark.usefixtures("own_handler")
def test_processes_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # restored afterwards
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(
        sys, "orig_argv", [sys.executable, "-c", "import os; assert os.environ['OMP_NUM_THREADS'] == '3'"]
    )
    launch(2)


def test_a_process_that_can_not_read_the_folder_of_the_run_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session = Session(Run(tmp_path), "32-true", 1, math.inf, "cpu")
    monkeypatch.setattr(session.fabric, "broadcast", lambda _: True)  # the first process, elsewhere, has a checkpoint
    with pytest.raises(RunError, match=r"config\.json: no such file: is .* the folder of a run\?"):
        session.open("digits", digits.DigitsConfig(), {"sha256": {}}, {}, resume=True)


@pytest.mark.parametrize(
    ("train", "accelerator"),
    [
        (language_model.train, "auto"),
        (digits.train, "auto"),
        (number_recipe.train, "cpu"),
        (subword_recipe.train, "cpu"),
        (captions.train, "cpu"),
        (attentive.train, "cpu"),
    ],
)
def test_recipes_whose_tensors_stay_on_the_cpu_use_no_gpu(
    train: Callable[..., bool], accelerator: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = []

    def fabric(*, accelerator: str, **_: object) -> None:
        chosen.append(accelerator)
        raise StopIteration

    monkeypatch.setattr(sessions, "Fabric", fabric)
    with pytest.raises(StopIteration):
        train(SimpleNamespace(precision="32-true", seed=1), None, Run(tmp_path))
    assert chosen == [accelerator]


def test_the_number_of_processes_divides_the_batch(tmp_path: Path) -> None:
    session = Session(Run(tmp_path), "32-true", 1, math.inf, "cpu")
    session.rank, session.ranks = 1, 3
    assert session.share(12) == slice(4, 8)
    with pytest.raises(SettingsError, match=r"^batch_size: expected a multiple of the 3 processes, found 10$"):
        session.share(10)
