"""Corpus files: the cache folder, checksums, reading text that may be compressed, and mapped arrays."""

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import MADV_DONTNEED, mmap
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pooch  # type: ignore[import-untyped]

from app.errors import CorpusError

CACHE = Path(pooch.os_cache("seqserve"))


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, plain, .gz or .xz, for reading its lines; raise CorpusError if it can't be read.

    Line breaks are those of `app.text.lines`: the server reads the same sentences.
    """
    try:
        opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with opened(path, "rt", encoding="utf-8-sig") as text:
            yield text
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: expected UTF-8, found byte {error.object[error.start]:#04x}") from error
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}: expected {'xz' if path.suffix == '.xz' else 'gzip'}: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: can't be read: {error.strerror}") from error


def sha256(path: Path) -> str:
    """Return the hex digest of a file; CorpusError if it can't be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CorpusError(f"{path}: can't be read: {error.strerror}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder to be written, a file beside it: other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.lock")
    while True:
        with file.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_open(file, lock):
                continue  # its last holder has removed it
            try:
                yield
            finally:
                file.unlink()
            return


def _is_open(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end it replaces `path`, which is whole at any time."""
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    partial.replace(path)


def fill(folder: Path, write: Callable[[Path], None]) -> None:
    """Create a folder by `write`, unless it is there; it appears whole or not at all. One process writes, others wait.

    The next process replaces a killed one's files. Raise CorpusError if the folder can't be written.
    """
    if folder.is_dir():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        with locked(folder):
            if folder.is_dir():
                return
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                write(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise CorpusError(f"{folder}: can't be written: {error.strerror}") from error


def release(array: npt.NDArray[Any]) -> None:
    """Drop the pages of a memory-mapped array from this process; reading maps them again from the system's cache."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap):
        owner.madvise(MADV_DONTNEED)
