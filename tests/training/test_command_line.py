"""The command line of training: commands and error messages."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from app import bundle as bundles
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.loading import load_predictor
from tests.drawn_digits import corpus as drawn_corpus
from training.__main__ import PUBLISH, main
from training.digits import robustness
from training.digits.data import DigitCorpus
from training.evaluate import score_files
from training.language_model.data import SPLITS, Corpus, Source
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
    assert capsys.readouterr().out.splitlines()[-1] == str(store / "my-run" / "v1")
    assert bundles.read(store / "my-run" / "v1").manifest.corpus.terms == "mine alone"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("My Letters_2.0", "my-letters_2.0"),
        ("_.run", "run"),
        ("\u043f\u0438\u0441\u044c\u043c\u0430", "corpus"),
        ("a" * 70, "a" * 64),
    ],
)
def test_a_model_of_ones_own_texts_is_named_after_the_runs_folder(
    command: Command, texts: list[object], tmp_path: Path, folder: str, name: str
) -> None:
    command("language-model", "cpu", "--run", tmp_path / folder, *texts, *SIZES, "--epochs", 1)
    assert Run(tmp_path / folder).read("source.json")["name"] == name
    command("publish", tmp_path / folder, "--store", tmp_path / "store")
    command("publish", tmp_path / folder, "--store", tmp_path / "store", "--name", "chosen")
    assert bundles.models(tmp_path / "store") == sorted([name, "chosen"])


def test_a_run_in_the_working_folder_has_its_name(
    command: Command, texts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    command("language-model", "cpu", "--run", ".", *texts, *SIZES, "--epochs", 1)
    assert Run(Path()).read("source.json")["name"] == "here"


def test_a_run_stopped_early_has_the_curve_of_its_finished_epochs(
    command: Command, texts: list[object], tmp_path: Path
) -> None:
    piece = ["language-model", "cpu", "--run", tmp_path, *texts, *SIZES, "--resume", "--minutes", 0]
    for _ in range(4):  # as many windows has an epoch; its end comes with the next step
        command(*piece)
        assert not (tmp_path / "curves.png").exists()
    command(*piece)
    assert len(Run(tmp_path).metrics()) == 1
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_invalid_settings_of_a_run_are_one_error_line(
    refusal: Callable[..., str], texts: list[object], tmp_path: Path
) -> None:
    reported = refusal(
        "language-model", "cpu", "--run", tmp_path / "run", *texts, "--batch-size", 0, "--input-dropout", 1
    )
    expected = "input_dropout: expected 0 or more and below 1, found 1.0; batch_size: expected 1 or more, found 0"
    assert reported == f"error: {expected}"
    assert not (tmp_path / "run").exists()


def test_no_processes_are_an_error(refusal: Callable[..., str], texts: list[object], tmp_path: Path) -> None:
    reported = refusal("language-model", "cpu", "--run", tmp_path / "run", *texts, "--processes", 0)
    assert reported == "error: processes: expected 1 or more, found 0"


def test_texts_are_scored_with_a_model_of_the_store(
    command: Command, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    files[0].write_text("the company said profits rose\n")
    files[1].write_text("the company said xylophones rose\nshares fell\n")
    command("evaluate", *files, "--store", tiny_store, "--model", "tiny")
    head, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert head == ["file", "tokens", "unknown", "perplexity", "perplexity excluding unknown"]
    predictor = load_predictor(bundles.read(tiny_store / "tiny" / "1"))
    assert isinstance(predictor, LanguageModelPredictor)
    for row, file, counts in zip(rows, files, (["6", "0"], ["9", "1"]), strict=True):
        (score,) = score_files(predictor, [file])
        assert row[:3] == [str(file), *counts]
        assert float(row[3]) == pytest.approx(score.perplexity, abs=0.006)
        assert float(row[4]) == pytest.approx(score.perplexity_excluding_unknown, abs=0.006)


def test_a_text_that_cannot_be_scored_is_an_error(
    refusal: Callable[..., str], tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, known = tmp_path / "missing.txt", ["--store", tiny_store, "--model", "tiny"]
    assert refusal("evaluate", *known) == "error: evaluate: expected a file, found none"
    reported = refusal("evaluate", missing, *known)
    assert reported == f"error: {missing}: can't be read: No such file or directory"
    reported = refusal("evaluate", missing, "--store", tiny_store)
    assert reported == f"error: {tiny_store}/ptb: can't be read: No such file or directory"
    assert not capsys.readouterr().out


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
        ("cut.txt.gz", gzip.compress(b"a b c\n" * 99, mtime=0)[:-9], "expected gzip: Compressed file ended before"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(
    refusal: Callable[..., str], texts: list[object], tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    reported = refusal("language-model", "chapter", "--run", tmp_path / "run", *texts[:2], "--valid", path, *texts[4:])
    assert reported.startswith(f"error: {path}: {message}")
    assert not (tmp_path / "run").exists()


def test_a_text_that_is_too_short_is_an_error(refusal: Callable[..., str], texts: list[object], tmp_path: Path) -> None:
    reported = refusal("language-model", "chapter", "--run", tmp_path / "run", *texts)
    assert reported == "error: training text: expected more than 700 tokens, found 105"


@pytest.mark.parametrize("given", [slice(0, 2), slice(0, 4), slice(2, 6)])
def test_texts_are_given_together(
    given: slice, refusal: Callable[..., str], texts: list[object], tmp_path: Path
) -> None:
    reported = refusal("language-model", "chapter", "--run", tmp_path, *texts[given])
    assert reported.startswith("error: expected --train, --valid and --test, or --data alone; found --")


def test_texts_and_a_folder_exclude_each_other(
    refusal: Callable[..., str], texts: list[object], tmp_path: Path
) -> None:
    reported = refusal("language-model", "chapter", "--run", tmp_path, "--data", tmp_path, *texts)
    assert reported.startswith("error: expected --train, --valid and --test, or --data alone; found --")


def test_a_folder_without_the_penn_treebank_is_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    reported = refusal("language-model", "chapter", "--run", tmp_path / "run", "--data", tmp_path)
    assert reported == f"error: {tmp_path}/ptb.train.txt: can't be read: No such file or directory"


def test_without_a_network_a_download_is_an_error(
    refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.language_model.data.CACHE", tmp_path)
    monkeypatch.setattr("training.language_model.data.PTB_URL", "http://127.0.0.1:1/")  # no server listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    reported = refusal("language-model", "chapter", "--run", tmp_path / "run")
    assert reported.startswith("error: http://127.0.0.1:1/: can't be downloaded: ")


def test_tied_layers_of_different_sizes_are_an_error(
    refusal: Callable[..., str], texts: list[object], tmp_path: Path
) -> None:
    reported = refusal("language-model", "cpu", "--run", tmp_path, *texts, *SIZES, "--hidden-sizes", 16, 20)
    assert reported == "error: tied: expected a last layer of the embedding's size 12, found 20"


def test_an_existing_run_is_neither_started_over_nor_resumed_as_another(
    refusal: Callable[..., str], finished: Run, texts: list[object]
) -> None:
    arguments = ["language-model", "cpu", "--run", finished.folder, *texts, *SIZES]
    assert refusal(*arguments).startswith(f"error: {finished.folder}: holds a run already; go on with --resume")
    reported = refusal(*arguments, "--resume", "--batch-size", 5)
    assert reported.startswith(f"error: {finished.folder}: started with another configuration: batch_size is 5, was 4")


def test_an_invalid_model_name_is_an_error(refusal: Callable[..., str], finished: Run, tmp_path: Path) -> None:
    reported = refusal("publish", finished.folder, "--store", tmp_path, "--name", "My Model")
    assert reported.startswith(f"error: {tmp_path}: expected a name of the form ")
    assert reported.endswith("found 'My Model'")


@pytest.mark.parametrize("family", [None, "poems"])
def test_a_run_of_no_family_that_can_be_published_is_rejected_by_name(
    family: str | None, refusal: Callable[..., str], finished: Run, tmp_path: Path
) -> None:
    copied, store = tmp_path / "copied", tmp_path / "store"
    shutil.copytree(finished.folder, copied)
    environment = Run(copied).read("environment.json")
    del environment["family"]
    recorded = {} if family is None else {"family": family}
    (copied / "environment.json").write_text(json.dumps(environment | recorded))
    reported = refusal("publish", copied, "--store", store)
    assert reported == f"error: {copied}/environment.json: expected the family {' or '.join(PUBLISH)}, found {family!r}"
    assert not store.exists()


def test_an_option_of_another_family_is_rejected(refusal: Callable[..., str], finished: Run, tmp_path: Path) -> None:
    for option in ("photographs", "data"):
        reported = refusal("publish", finished.folder, "--store", tmp_path / "store", f"--{option}", tmp_path)
        found = "expected no such option with this run of the family language_model, found one"
        assert reported == f"error: --{option}: {found}"
    assert not (tmp_path / "store").exists()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Drawn digits stand for MNIST, and few images of no digit are shown; the folders that were asked for."""
    folders: list[Path | None] = []

    def load(folder: Path | None) -> DigitCorpus:
        folders.append(folder)
        return drawn_corpus()

    monkeypatch.setattr("training.digits.data.load", load)
    monkeypatch.setattr(robustness, "measure", partial(robustness.measure, negatives=2))
    return folders


SMALL = ["--hidden-sizes", 12, "--patches", 7, "--batch-size", 20, "--samples", 120]


def test_a_digit_reader_is_trained_resumed_published_and_put_to_the_test(
    command: Command, refusal: Callable[..., str], drawn: list[Path | None], tmp_path: Path,
    capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    folder, store = tmp_path / "run", tmp_path / "store"
    training = ["digits", "best", "--run", folder, "--data", tmp_path, *SMALL, "--seed", 3]
    command(*training, "--minutes", 0)
    assert f"{folder}: stopped after 0 minutes; go on with --resume" in capsys.readouterr().out
    assert refusal("publish", folder, "--store", store).startswith(f"error: {folder}: expected 120 samples seen")
    command(*training, "--resume")
    assert "stopped" not in capsys.readouterr().out
    config = Run(folder).read("config.json")
    assert (config["seed"], config["hidden_sizes"], config["schedule"]) == (3, [12], "one-cycle")
    assert drawn == [tmp_path, None, tmp_path]  # publishing looks where the run found its data
    command("publish", folder, "--store", store, "--version", "v1")
    assert capsys.readouterr().out.splitlines()[-1] == str(store / "digits" / "v1")
    command("robustness", "--store", store, "--limit", 10)
    table = capsys.readouterr().out
    assert "| test digits classified correctly (10) |" in table
    assert all(f"| {name} |" in table for name in ("inverted", "blanks", "zigzag"))


def test_what_is_no_digit_reader_is_not_put_to_the_test(
    refusal: Callable[..., str], drawn: list[Path | None], tiny_store: Path
) -> None:
    reported = refusal("robustness", "--store", tiny_store, "--model", "tiny")
    assert reported == "error: robustness: expected a digit reader, found tiny"
    assert not drawn


def test_invalid_settings_of_a_digit_reader_are_one_error_line(
    refusal: Callable[..., str], drawn: list[Path | None], tmp_path: Path
) -> None:
    run = ["digits", "chapter", "--run", tmp_path / "run"]
    reported = refusal(*run, "--batch-size", 0, "--p-degraded", 1)
    expected = "batch_size: expected 1 or more, found 0; p_degraded: expected 0 or more and below 1, found 1.0"
    assert reported == f"error: {expected}"
    reported = refusal(*run, "--photographs", tmp_path / "none.tar")
    assert reported.startswith(f"error: {tmp_path}/none.tar: expected a folder or a tar of photographs: ")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_mnist_is_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    reported = refusal("digits", "chapter", "--run", tmp_path / "run", "--data", tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    assert reported == f"error: {path}: can't be read: No such file or directory"
    assert not (tmp_path / "run").exists()


def test_a_failure_is_one_line_on_stderr_and_exit_status_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", "publish", tmp_path],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"error: {tmp_path}/environment.json: no such file: is {tmp_path} the folder of a run?\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
