"""The commands that need no server."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app import bundle as bundles
from app.bundle import Bundle
from app.commands.images import BATCH
from app.images import decoded
from app.runtime.families.captions import Describe, Description, OtherCaption
from app.runtime.families.digits import Classification, Classify
from tests.e2e.conftest import ENVIRONMENT, Command, seqserve

TEXT = "The company's profits rose.\nMarket shares fell, said Mr. Banks\n"


def parsed_scores(output: str) -> dict[str, float]:
    return {label: float(value) for label, value in (line.split(":\t") for line in output.splitlines())}


def test_suggest_prints_what_the_server_answers(tiny_store: Path, client: httpx.Client) -> None:
    run = seqserve("suggest", "the company", "--top-k", "3", "--store", tiny_store)
    answer = client.post("/next-word", json={"text": "the company", "top_k": 3}).json()
    assert run.stdout.splitlines() == [f"{one['probability']:.4f}\t{one['text']}" for one in answer["suggestions"]]
    assert (run.returncode, run.stderr) == (0, "")


def test_suggest_reads_standard_input(tiny_store: Path) -> None:
    typed = seqserve("suggest", "the comp", "--complete", "--store", tiny_store)
    piped = seqserve("suggest", "-", "--complete", "--store", tiny_store, text="the comp\n")
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, typed.stdout, "")
    assert "company" in piped.stdout


@pytest.mark.parametrize("mode", ["document", "sentence"])
def test_score_prints_the_scores_that_the_server_returns(
    tiny_store: Path, client: httpx.Client, tmp_path: Path, mode: str
) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT)
    expected = client.post("/perplexity", json={"text": TEXT, "mode": mode}).json()["corpus"]
    from_file = seqserve("score", file, "--mode", mode, "--store", tiny_store)
    from_stdin = seqserve("score", "-", "--mode", mode, SEQSERVE_STORE=str(tiny_store), text=TEXT)
    assert parsed_scores(from_file.stdout) == {
        "Perplexity including OOVs": pytest.approx(expected["perplexity"], abs=1e-4),
        "Perplexity excluding OOVs": pytest.approx(expected["perplexity_excluding_unknown"], abs=1e-4),
        "OOVs": expected["unknown_tokens"],
        "Tokens": expected["tokens"],
    }
    assert from_stdin.stdout == from_file.stdout


def test_score_pools_several_files(tiny_store: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for copies, file in enumerate(files, 1):
        file.write_text(TEXT * copies)
    output = seqserve("score", *files, "--store", tiny_store).stdout
    parts = {block.partition(":\n")[0]: parsed_scores(block.partition(":\n")[2]) for block in split(output)}
    assert list(parts) == [*map(str, files), "all"]
    first, second, both = parts.values()
    assert both["Tokens"] == first["Tokens"] + second["Tokens"]
    logs = [part["Tokens"] * math.log(part["Perplexity including OOVs"]) for part in (first, second, both)]
    assert logs[2] == pytest.approx(logs[0] + logs[1], rel=1e-4)


@pytest.mark.parametrize("size", [64, 65, 100])
def test_score_cuts_a_long_line_without_a_difference(
    tiny_store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    file = tmp_path / "line.txt"
    file.write_text("The company's  profits rose 12% in the  U.S., said Mr. Banks. " * 20 + "\n" + TEXT)
    whole = command("score", file, "--store", tiny_store)
    assert whole[0] == 0
    monkeypatch.setattr("app.commands.texts.MAX_PART", size)
    assert command("score", file, "--store", tiny_store) == whole


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        ("a" * 65, "document", "a line break or a word within 64 characters, found none at offset 0"),
        (
            "a\n" + "a  " * 30,
            "document",
            "a line break or a word within 64 characters, found none at offset 2",
        ),
        ("a " * 65, "sentence", "a line break within 64 characters, found none at offset 0"),
    ],
)
def test_a_line_that_cannot_be_cut_is_reported(
    tiny_store: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    mode: str,
    expected: str,
) -> None:
    file = tmp_path / "line.txt"
    file.write_text(content)
    monkeypatch.setattr("app.commands.texts.MAX_PART", 64)
    result = command("score", file, "--mode", mode, "--store", tiny_store)
    assert result == (1, "", f"seqserve: {file}: expected {expected}\n")


def test_score_reads_an_endless_line_in_bounded_memory(tiny_store: Path, tmp_path: Path) -> None:
    """A line of 64 MiB."""
    file = tmp_path / "line.txt"
    with file.open("w") as stream:
        for _ in range(128):
            stream.write("the " + "." * (2**19 - 5) + " ")
    program = """
import sys
from pathlib import Path
from app.commands import texts
texts.score((Path(sys.argv[1]),), Path(sys.argv[2]), 1)
print(Path("/proc/self/status").read_text())
"""
    command = [sys.executable, "-c", program, str(file), str(tiny_store)]
    run = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=True, encoding="utf-8")
    shown = dict(line.split(":", 1) for line in run.stdout.splitlines() if ":" in line)
    assert shown["Tokens"].strip() == "129"
    peak = int(shown["VmHWM"].removesuffix("kB"))
    assert peak < 180_000, "the file must not be in memory as a whole"


def test_score_reports_a_missing_file_and_scores_the_others(tiny_store: Path, tmp_path: Path) -> None:
    good, other = tmp_path / "a.txt", tmp_path / "b.txt"
    good.write_text(TEXT)
    other.write_text(TEXT)
    (tmp_path / "empty.txt").touch()
    run = seqserve("score", good, tmp_path / "none.txt", tmp_path / "empty.txt", other, "--store", tiny_store)
    assert run.stderr.splitlines() == [
        f"seqserve: {tmp_path}/none.txt: can't be read: No such file or directory",
        f"seqserve: {tmp_path}/empty.txt: expected text, found none",
    ]
    assert run.returncode == 1
    assert [block.partition(":\n")[0] for block in split(run.stdout)] == [str(good), str(other), "all"]


def split(output: str) -> list[str]:
    lines = output.splitlines()
    return ["\n".join(lines[start : start + 5]) for start in range(0, len(lines), 5)]


class ShadePredictor:
    """A fake predictor of both image families that returns the shade of the first pixel."""

    def prepare(self, payload: Classify | Describe) -> tuple[Classify | Describe, int]:
        return payload, np.asarray(decoded(payload.content, name=payload.name))[0, 0, 0].item()

    def step(self, examples: Sequence[tuple[Classify | Describe, int]]) -> list[Any]:
        assert len(examples) <= BATCH
        return [self._answer(*example) for example in examples]

    def _answer(self, payload: Classify | Describe, shade: int) -> Classification | Description:
        if isinstance(payload, Describe):
            others = [OtherCaption(f"less than {shade}", -2.5 - rank) for rank in range(payload.alternatives)]
            return Description(f"a shade of {shade} beside {payload.beam}", -1.25, others)
        if shade > 9:
            return Classification(None, 0.1, [0.1] * 10, True, "blank image", np.zeros((28, 28), np.uint8))
        return Classification(shade, 0.98765, [0.1] * 10, False, None, np.zeros((28, 28), np.uint8))


@pytest.fixture
def image_store(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of `captions`, `digits` and `tiny`; the first two are served by ShadePredictor."""
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    tiny = bundles.read(store / "tiny" / "1").manifest
    for family, metrics in (("digits", {"test_accuracy": 0.99654}), ("captions", {"test_cider": 55.04})):
        changes = {"family": family, "model": family, "metrics": metrics, "files": {}}
        bundles.publish(store, tiny.model_copy(update=changes), {"README.md": b""})

    def load(bundle: Bundle, *, threads: int) -> ShadePredictor:
        assert bundle.manifest.family != "language_model"
        return ShadePredictor()

    monkeypatch.setattr("app.runtime.loading.load_predictor", load)
    return store


def png(path: Path, shade: int) -> Path:
    Image.new("L", (28, 28), shade).save(path, "png")
    return path


def test_classify_prints_a_table_and_reports_invalid_images(
    image_store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(2 * BATCH):
        png(tmp_path / f"{index}.png", index % 12)
    Path("notes.txt").write_text("none")
    names = [f"{index}.png" for index in range(2 * BATCH)]
    files = [*names[:3], "notes.txt", "nowhere.png", "store", *names[3:]]
    status, output, errors = command("classify", *files, "--store", image_store)
    heading, *rows = output.splitlines()
    assert heading == "file         digit  confidence  rejected"
    assert rows[2] == "2.png        2      0.9877"
    assert rows[10] == "10.png       -      0.1000      blank image"
    assert [row.split()[0] for row in rows] == names
    assert [line.split(": ")[:2] for line in errors.splitlines()] == [
        ["seqserve", "notes.txt"],
        ["seqserve", "nowhere.png"],
        ["seqserve", "store"],
    ]
    assert status == 1


def test_caption_prints_the_best_caption_and_its_alternatives(
    image_store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    png(tmp_path / "a.png", 7)
    content = io.TextIOWrapper(io.BytesIO(png(tmp_path / "b.png", 8).read_bytes()))
    monkeypatch.setattr("sys.stdin", content)
    options = ("--beam", 5, "--alternatives", 2, "--store", image_store)
    status, output, errors = command("caption", "a.png", "-", *options)
    assert output.splitlines() == [
        "file   log-probability  caption",
        "a.png  -1.2500          a shade of 7 beside 5",
        "       -2.5000          less than 7",
        "       -3.5000          less than 7",
        "-      -1.2500          a shade of 8 beside 5",
        "       -2.5000          less than 8",
        "       -3.5000          less than 8",
    ]
    assert (status, errors) == (0, "")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--beam", 11, "beam: expected 1 to 10, found 11"),
        ("--alternatives", 10, "alternatives: expected 0 to 9, found 10"),
    ],
)
def test_an_invalid_beam_is_rejected_before_any_file_is_read(
    image_store: Path, tmp_path: Path, command: Command, option: str, value: int, message: str
) -> None:
    png(tmp_path / "a.png", 7)
    result = command("caption", tmp_path / "a.png", option, value, "--store", image_store)
    assert result == (1, "", f"seqserve: {message}\n")


def test_a_command_uses_a_model_of_its_family(image_store: Path, tmp_path: Path, command: Command) -> None:
    file = png(tmp_path / "a.png", 7)
    assert command("classify", file, "--model", "digits", "--store", image_store)[0] == 0
    status, output, errors = command("classify", file, "--model", "tiny", "--store", image_store)
    assert (status, output) == (1, "")
    assert errors == "seqserve: tiny: expected a digits model, found one of language_model\n"
    suggested = seqserve("suggest", "the company", "--store", image_store)
    assert (suggested.returncode, len(suggested.stdout.splitlines()), suggested.stderr) == (0, 5, "")
    shutil.rmtree(image_store / "digits")
    status, output, errors = command("classify", file, "--store", image_store)
    assert (status, output, errors) == (1, "", f"seqserve: {image_store}: expected a digits model, found none\n")


def test_a_damaged_model_is_reported_and_skipped(damaged_store: Path) -> None:
    run = seqserve("suggest", "the company", "--store", damaged_store)
    assert (run.returncode, len(run.stdout.splitlines())) == (0, 5)
    assert run.stderr.startswith("seqserve: broken: damaged: ")
    assert run.stderr.count("\n") == 1


def test_models_shows_the_headline_metric_of_each_family(image_store: Path) -> None:
    heading, *rows = seqserve("models", "--store", image_store).stdout.splitlines()
    shown = {row.split()[0]: row[heading.index("test") : heading.index("bytes")].strip() for row in rows}
    assert shown == {"captions": "CIDEr 55.0", "digits": "accuracy 99.65%", "tiny": "-"}


def test_models_lists_the_store_and_marks_damaged_models(damaged_store: Path) -> None:
    run = seqserve("models", "--store", damaged_store)
    heading, tiny, broken = run.stdout.splitlines()
    assert heading.split()[:3] == ["name", "version", "family"]
    assert tiny.split()[:3] == ["tiny", "1", "language_model"]
    assert broken.startswith("broken  damaged: ")
    assert run.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["score"], 2, "score: expected a file"),
        (["classify"], 2, "classify: expected a file"),
        (["caption"], 2, "caption: expected a file"),
        (["caption", "a.jpg"], 1, "expected a captions model, found none"),
        (["score", "/nowhere.txt"], 1, "/nowhere.txt"),
        (["score", "/"], 1, "can't be read"),
        (["suggest", "a", "--model", "other"], 1, "other: no such model; available: tiny"),
        (["serve", "--port", "70000"], 2, "SEQSERVE_PORT"),
    ],
)
def test_an_error_is_one_line_on_stderr(
    tiny_store: Path, command: Command, arguments: list[str], status: int, expected: str
) -> None:
    found, output, errors = command(*arguments, "--store", tiny_store)
    assert (found, output) == (status, "")
    assert errors.startswith("seqserve: ")
    assert errors.count("\n") == 1
    assert expected in errors


def test_an_error_of_the_program_is_its_exit_status(tiny_store: Path) -> None:
    run = seqserve("serve", "--host", "256.0.0.1", "--store", tiny_store)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith("seqserve: ")
    assert "http://256.0.0.1:8000" in run.stderr


@pytest.mark.parametrize(
    ("content", "expected"), [(b"", "expected text, found none"), (b"the \xff", "expected UTF-8, found byte 0xff")]
)
def test_an_invalid_text_file_is_named(tiny_store: Path, tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    run = seqserve("score", file, "--store", tiny_store)
    assert (run.returncode, run.stderr) == (1, f"seqserve: {file}: {expected}\n")


def test_an_unknown_setting_is_a_warning(tiny_store: Path) -> None:
    run = seqserve("models", SEQSERVE_STORE=str(tiny_store), SEQSERVE_STORES="/nowhere")
    assert (run.returncode, run.stderr) == (
        0,
        "seqserve: SEQSERVE_STORES: no such setting, ignored; the closest is SEQSERVE_STORE\n",
    )


def test_the_server_logs_unknown_settings_and_starts_beside_a_service_of_kubernetes(tiny_store: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--store", tiny_store],
        stderr=subprocess.PIPE,
        env=ENVIRONMENT | {"SEQSERVE_PORT": "tcp://10.0.0.1:8000", "SEQSERVE_PROT": "1", "SEQSERVE_HOST": "256.0.0.1"},
    )
    _, errors = process.communicate()
    *warnings, error = errors.decode().splitlines()
    assert [json.loads(line)["message"] for line in warnings] == [
        "SEQSERVE_PROT: no such setting, ignored; the closest is SEQSERVE_PORT",
        "SEQSERVE_PORT: ignored, set by Kubernetes for a Service",
    ]
    assert error.startswith("seqserve: http://256.0.0.1:8000: can't listen")


@pytest.mark.parametrize("arguments", [("models",), ("--help",), ("suggest", "the company"), ("score", "--help")])
@pytest.mark.parametrize(
    ("redirection", "expected"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor"), (">&- 2>&-", "")],
)
def test_an_error_of_standard_output_is_one_line(
    tiny_store: Path, arguments: tuple[str, ...], redirection: str, expected: str
) -> None:
    command = [sys.executable, "-m", "app", *arguments]
    run = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *command],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT | {"SEQSERVE_STORE": str(tiny_store)},
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, f"seqserve: standard output: {expected}\n" if expected else "")


def test_a_broken_pipe_prints_no_traceback(tiny_store: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command: list[str | Path] = [sys.executable, "-m", "app", "models", "--store", tiny_store]
    try:
        run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    finally:
        os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")
