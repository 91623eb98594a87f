"""The extension is compiled once, whole, however many ask for it; without it torch's own operations answer."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from app.models import native


def test_torch_operations_are_the_fallback_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with caplog.at_level("INFO"):
        assert not native.loaded.__wrapped__()
    assert "no c++ compiler found" in caplog.text


def test_a_failing_compiler_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    compiler = script(tmp_path, 'echo "memory_cells.cpp:1: error: no such vector" >&2; exit 1')
    monkeypatch.setattr(shutil, "which", lambda _: compiler)
    assert not native.loaded.__wrapped__()
    expected = "memory_cells.cpp: not compiled; falling back to slower torch operations: memory_cells.cpp:1: error"
    assert expected in caplog.text


def test_a_library_that_two_build_at_once_is_whole(tmp_path: Path) -> None:
    writes_in_two_parts = (
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done; echo half >$out; echo whole >>$out'
    )
    compiler, library = script(tmp_path, writes_in_two_parts), tmp_path / "built" / "cells.so"
    with ThreadPoolExecutor(2) as both:
        for done in [both.submit(native.build, compiler, "DEFAULT", library) for _ in range(2)]:
            done.result()
    assert library.read_text() == "half\nwhole\n"
    assert list(library.parent.iterdir()) == [library]


def processes() -> Executor:
    return ProcessPoolExecutor(2, mp_context=get_context("fork"))  # a new interpreter would import torch


def answer() -> bool:
    """Not from the cache."""
    return native.loaded.__wrapped__()


@pytest.mark.parametrize("two", [lambda: ThreadPoolExecutor(2), processes], ids=["threads", "processes"])
def test_two_that_ask_at_once_compile_once(
    two: Callable[[], Executor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    waits_for_another = f'echo 1 >>{count}; for _ in $(seq 300); do [ "$(wc -l <{count})" -lt 2 ] || break; done'
    compiler = script(tmp_path, f'{waits_for_another}; while [ $# -gt 1 ]; do [ "$1" = -o ] && echo >$2; shift; done')
    Path(compiler).rename(tmp_path / "c++")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with two() as executor:
        answers = [done.result() for done in [executor.submit(answer) for _ in range(2)]]
    assert answers == [False, False], "what this compiler writes can't be loaded"
    assert count.read_text() == "1\n"


def script(folder: Path, content: str) -> str:
    """An executable in the compiler's place."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o700)
    return str(path)
