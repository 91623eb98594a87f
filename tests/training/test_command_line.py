"""python -m training: what a person types, and what is told when it can't be done."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app import bundle as bundles
from training import data
from training.__main__ import main
from training.data import SPLITS, Corpus, Source
from training.run import Run

SIZES = ["--embedding-size", 12, "--hidden-sizes", 16, 12, "--batch-size", 4, "--steps", 6, "--epochs", 2]

Command = Callable[..., None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `python -m training` with the arguments given."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        main()

    return run


@pytest.fixture
def refusal(command: Command) -> Callable[..., str]:
    """The one line with which the command ends when it fails."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            command(*arguments)
        assert isinstance(end.value.code, str), "the text goes to stderr and the exit status is 1"
        assert "\n" not in end.value.code
        return end.value.code

    return run


@pytest.fixture
def texts(source: Source) -> list[object]:
    return [part for split in SPLITS for part in (f"--{split}", source.files[split])]


def test_a_model_of_ones_own_texts_is_trained_resumed_and_published(
    command: Command, texts: list[object], corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = tmp_path / "my-run", tmp_path / "store"
    training = ["language-model", "cpu", "--run", folder, *texts, "--terms", "mine alone", *SIZES]
    command(*training, "--minutes", 0)
    assert f"{folder}: stopped after 0 minutes; go on with --resume" in capsys.readouterr().out
    assert not (folder / "curves.png").exists()
    command(*training, "--resume")
    assert (folder / "curves.png").exists()
    assert Run(folder).read("config.json")["vocabulary_size"] == len(corpus.vocabulary)
    command("publish", folder, "--store", store, "--version", "v1")
    assert capsys.readouterr().out.splitlines()[-1] == str(store / "tiny" / "v1")
    assert bundles.read(store / "tiny" / "v1").manifest.corpus.terms == "mine alone"


def test_a_preset_can_be_changed_field_by_field(command: Command, texts: list[object], tmp_path: Path) -> None:
    changes = ["--learning-rate", 0.5, "--cost", "mean", "--no-shifted", "--seed", 7, "--vocabulary-size", 9]
    command("language-model", "gpu", "--run", tmp_path, *texts, *SIZES, *changes)
    config = Run(tmp_path).read("config.json")
    assert (config["learning_rate"], config["cost"], config["shifted"], config["seed"]) == (0.5, "mean", False, 7)
    assert (config["vocabulary_size"], config["hidden_sizes"], config["schedule"]) == (9, [16, 12], "one-cycle")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "can't be read: No such file or directory"),
        ("empty.txt", b"", "expected text, found none"),
        ("latin.txt", b"caf\xe9\n", "expected UTF-8, found byte 0xe9"),
        ("cut.txt.gz", gzip.compress(b"a b c\n" * 99)[:-9], "expected gzip: Compressed file ended before"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(
    refusal: Callable[..., str], texts: list[object], tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    told = refusal("language-model", "chapter", "--run", tmp_path / "run", *texts[:2], "--valid", path, *texts[4:])
    assert told.startswith(f"error: {path}: {message}")
    assert not (tmp_path / "run").exists()


def test_a_text_that_is_too_short_is_told(refusal: Callable[..., str], texts: list[object], tmp_path: Path) -> None:
    told = refusal("language-model", "chapter", "--run", tmp_path / "run", *texts)
    assert told == "error: training text: expected more than 700 tokens, found 105"


@pytest.mark.parametrize("given", [slice(0, 2), slice(0, 4), slice(2, 6)])
def test_texts_are_given_together(
    given: slice, refusal: Callable[..., str], texts: list[object], tmp_path: Path
) -> None:
    told = refusal("language-model", "chapter", "--run", tmp_path, *texts[given])
    assert told.startswith("error: expected --train, --valid and --test, or --data alone; found --")


def test_texts_and_a_folder_exclude_each_other(
    refusal: Callable[..., str], texts: list[object], tmp_path: Path
) -> None:
    told = refusal("language-model", "chapter", "--run", tmp_path, "--data", tmp_path, *texts)
    assert told.startswith("error: expected --train, --valid and --test, or --data alone; found --")


def test_a_folder_without_the_penn_treebank_is_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    told = refusal("language-model", "chapter", "--run", tmp_path / "run", "--data", tmp_path)
    assert told == f"error: {tmp_path}/ptb.train.txt: can't be read: No such file or directory"


def test_without_a_network_a_download_is_told(
    refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "CACHE", tmp_path)
    monkeypatch.setattr(data, "PTB_URL", "http://127.0.0.1:1/")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    told = refusal("language-model", "chapter", "--run", tmp_path / "run")
    assert told.startswith("error: http://127.0.0.1:1/: can't be downloaded: ")


def test_tied_layers_of_different_sizes_are_told(
    refusal: Callable[..., str], texts: list[object], tmp_path: Path
) -> None:
    told = refusal("language-model", "cpu", "--run", tmp_path, *texts, *SIZES, "--hidden-sizes", 16, 20)
    assert told == "error: tied: expected a last layer of the embedding's size 12, found 20"


def test_an_existing_run_is_neither_started_over_nor_resumed_as_another(
    refusal: Callable[..., str], finished: Run, texts: list[object]
) -> None:
    arguments = ["language-model", "cpu", "--run", finished.folder, *texts, *SIZES]
    assert refusal(*arguments).startswith(f"error: {finished.folder}: holds a run already; go on with --resume")
    told = refusal(*arguments, "--resume", "--batch-size", 5)
    assert told.startswith(f"error: {finished.folder}: started with another configuration: batch_size is 5, was 4")


def test_a_name_that_no_model_can_have_is_told(refusal: Callable[..., str], finished: Run, tmp_path: Path) -> None:
    told = refusal("publish", finished.folder, "--store", tmp_path, "--name", "My Model")
    assert told.startswith(f"error: {tmp_path}: expected a name of the form ")
    assert told.endswith("found 'My Model'")


def test_a_failure_is_one_line_on_stderr_and_exit_status_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", "publish", tmp_path],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"error: {tmp_path}/config.json: no such file: is {tmp_path} the folder of a run?\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
