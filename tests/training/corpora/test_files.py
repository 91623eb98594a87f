"""Files of corpora: folders that appear whole; mapped arrays leave this process's memory when they are released."""

import errno
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from app.errors import CorpusError
from training.corpora.documents import Documents
from training.corpora.epochs import Epoch
from training.corpora.files import fill, locked, release, replaced

ROOT = Path(__file__).parents[3]
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


def content(folder: Path) -> None:
    (folder / "content").write_text("whole")


def test_a_folder_is_filled_once_also_after_a_killed_process(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "folder"
    partial = folder.with_name("folder.partial")
    partial.mkdir(parents=True)
    (partial / "half").write_text("of a killed process")
    fill(folder, content)
    assert [file.name for file in folder.iterdir()] == ["content"]
    assert not partial.exists()
    fill(folder, lambda _: pytest.fail("filled again"))


def test_a_folder_that_can_not_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        content(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CorpusError, match=r"folder: can't be written: No space left on device$"):
        fill(tmp_path / "folder", full)
    assert not [*tmp_path.iterdir()]


def test_of_several_processes_one_fills_a_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from training.corpora.files import fill\n"
        "print('waits', flush=True)\n"
        "fill(Path(sys.argv[1]), lambda _: sys.exit('filled again'))\n"
    )
    folder = tmp_path / "folder"
    pipe = subprocess.PIPE
    with locked(folder):
        other = subprocess.Popen([sys.executable, "-c", script, folder], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "waits\n"
        folder.mkdir()
        assert other.poll() is None
    assert other.communicate() == ("", "")
    assert other.returncode == 0


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    with suppress(ZeroDivisionError), replaced(file) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "before"
    with replaced(file) as partial:
        partial.write_text("after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["after"]
