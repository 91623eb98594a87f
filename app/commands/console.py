"""Standard output and errors, and the files named as arguments."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from app.errors import SettingsError

FAILED: Final = 1  # exit status


def open_closed_streams() -> None:
    """Replace closed standard streams: output to one is an error, and no other file gets its number."""
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115, PTH123  # fails when written
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


@contextmanager
def reported_output() -> Iterator[None]:
    """Report an error of standard output in one line and exit; a broken pipe is silent, its reader has left."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        if not isinstance(error, BrokenPipeError):
            print_error(f"standard output: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        sys.exit(FAILED)


def require_files(command: str, files: Sequence[Path]) -> None:
    """Raise SettingsError without files."""
    if not files:
        raise SettingsError(f"{command}: expected a file, or - for standard input, found none")


def print_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Print one row of a table."""
    print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def print_error(error: object) -> None:
    """Print an error, or a warning, in one line."""
    print(f"seqserve: {error}", file=sys.stderr)
