"""Corpus files: the cache folder, checksums, reading text that may be compressed, and mapped arrays."""

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Iterator
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


def release(array: npt.NDArray[Any]) -> None:
    """Drop the pages of a memory-mapped array from this process; reading maps them again from the system's cache."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap):
        owner.madvise(MADV_DONTNEED)
