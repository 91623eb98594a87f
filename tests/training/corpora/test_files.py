"""Mapped arrays: what was read of them leaves this process's memory when it is released, and is read again."""

from pathlib import Path

import numpy as np
import pytest

from training.corpora.documents import Documents
from training.corpora.epochs import Epoch
from training.corpora.files import release

SIZE = 1 << 20


@pytest.fixture
def mapped(tmp_path: Path) -> "np.memmap[tuple[int], np.dtype[np.uint16]]":
    np.arange(SIZE, dtype=np.uint16).tofile(tmp_path / "ids")
    return np.memmap(tmp_path / "ids", np.uint16, "r")


def resident(path: object) -> int:
    """Return the bytes of a file that are mapped in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    found = [next(line for line in lines if line.startswith("Rss:")) for head in lines if head.endswith(str(path))]
    assert found
    return sum(1024 * int(line.split()[1]) for line in found)


def test_released_pages_are_not_resident_and_read_again(mapped: "np.memmap[tuple[int], np.dtype[np.uint16]]") -> None:
    total = int(mapped.sum(dtype=np.int64))
    assert resident(mapped.filename) == 2 * SIZE
    release(np.asarray(mapped[10:]).reshape(2, -1))  # a view of a view
    assert resident(mapped.filename) == 0
    assert int(mapped.sum(dtype=np.int64)) == total
    release(np.arange(3))  # not mapped: nothing to do


def test_an_epoch_leaves_none_of_its_sources_resident(mapped: "np.memmap[tuple[int], np.dtype[np.uint16]]") -> None:
    documents = Documents(mapped, np.arange(0, SIZE + 1, 1024, dtype=np.int64), 0, 0)
    for _ in Epoch({"a": documents}, {"a": 1.0}, 1, 0).windows([0, SIZE // 2], 1024):
        assert resident(mapped.filename) == 0
