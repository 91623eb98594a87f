"""The commands that need no server."""

import math
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import ENVIRONMENT, seqserve

TEXT = "The company's profits rose.\nMarket shares fell, said Mr. Banks\n"


def figures(output: str) -> dict[str, float]:
    return {label: float(value) for label, value in (line.split(":\t") for line in output.splitlines())}


def test_suggest_prints_what_the_server_answers(tiny_store: Path, client: httpx.Client) -> None:
    run = seqserve("suggest", "the company", "--top-k", "3", "--store", tiny_store)
    answer = client.post("/next-word", json={"text": "the company", "top_k": 3}).json()
    assert run.stdout.splitlines() == [f"{one['probability']:.4f}\t{one['text']}" for one in answer["suggestions"]]
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("mode", ["document", "sentence"])
def test_score_prints_the_figures_that_the_server_tells(
    tiny_store: Path, client: httpx.Client, tmp_path: Path, mode: str
) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT)
    told = client.post("/perplexity", json={"text": TEXT, "mode": mode}).json()["corpus"]
    from_file = seqserve("score", file, "--mode", mode, "--store", tiny_store)
    from_stdin = seqserve("score", "-", "--mode", mode, SEQSERVE_STORE=str(tiny_store), text=TEXT)
    assert figures(from_file.stdout) == {
        "Perplexity including OOVs": pytest.approx(told["perplexity"], abs=1e-4),
        "Perplexity excluding OOVs": pytest.approx(told["perplexity_excluding_unknown"], abs=1e-4),
        "OOVs": told["unknown_tokens"],
        "Tokens": told["tokens"],
    }
    assert from_stdin.stdout == from_file.stdout


def test_score_pools_several_files(tiny_store: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for place, file in enumerate(files, 1):
        file.write_text(TEXT * place)
    output = seqserve("score", *files, "--store", tiny_store).stdout
    parts = {block.partition(":\n")[0]: figures(block.partition(":\n")[2]) for block in split(output)}
    assert list(parts) == [*map(str, files), "all"]
    first, second, both = parts.values()
    assert both["Tokens"] == first["Tokens"] + second["Tokens"]
    logs = [part["Tokens"] * math.log(part["Perplexity including OOVs"]) for part in (first, second, both)]
    assert logs[2] == pytest.approx(logs[0] + logs[1], rel=1e-4)


def split(output: str) -> list[str]:
    lines = output.splitlines()
    return ["\n".join(lines[start : start + 5]) for start in range(0, len(lines), 5)]


def test_models_lists_the_store_and_marks_what_is_damaged(damaged_store: Path) -> None:
    run = seqserve("models", "--store", damaged_store)
    heading, tiny, broken = run.stdout.splitlines()
    assert heading.split()[:3] == ["name", "version", "family"]
    assert tiny.split()[:3] == ["tiny", "1", "language_model"]
    assert broken.startswith("broken  damaged: ")
    assert run.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["score"], 2, "expected a file"),
        (["score", "/nowhere.txt"], 1, "/nowhere.txt"),
        (["score", "/"], 1, "can't be read"),
        (["suggest", "a", "--model", "other"], 1, "other: no such model; there are: tiny"),
        (["serve", "--port", "70000"], 2, "SEQSERVE_PORT"),
        (["serve", "--host", "256.0.0.1"], 2, "http://256.0.0.1:8000"),
    ],
)
def test_an_error_is_one_line(tiny_store: Path, arguments: list[str], status: int, told: str) -> None:
    run = seqserve(*arguments, "--store", tiny_store)
    assert (run.returncode, run.stdout) == (status, "")
    assert run.stderr.startswith("seqserve: ")
    assert run.stderr.count("\n") == 1
    assert told in run.stderr


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "expected text, found none"), (b"the \xff", "expected UTF-8, found byte 0xff")]
)
def test_a_file_that_is_no_text_is_named(tiny_store: Path, tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    run = seqserve("score", file, "--store", tiny_store)
    assert (run.returncode, run.stderr) == (1, f"seqserve: {file}: {told}\n")


def test_an_unknown_variable_is_refused(tiny_store: Path) -> None:
    run = seqserve("models", SEQSERVE_STORES=str(tiny_store))
    assert (run.returncode, run.stderr) == (
        2,
        "seqserve: SEQSERVE_STORES: no such setting; the closest is SEQSERVE_STORE\n",
    )


def test_a_reader_who_has_enough_is_no_error_of_ours(tiny_store: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command: list[str | Path] = [sys.executable, "-m", "app", "models", "--store", tiny_store]
    try:
        run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    finally:
        os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")
