"""`seqserve classify` and `seqserve caption`."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tyro

from app.commands.console import FAILED, print_error, print_row, require_files
from app.commands.store import open_predictor
from app.errors import CorpusError, Malformed, TooLarge

if TYPE_CHECKING:  # slow imports, made by each command
    from app.runtime.families.captions import Description
    from app.runtime.families.digits import Classification
    from app.runtime.predictor import Predictor

BATCH: Final = 32  # images decoded and predicted together


def classify(files: tyro.conf.Positional[tuple[Path, ...]], store: Path, threads: int, model: str | None = None) -> int:
    """Print the digit in each image and its confidence. Exit with status 1 if a file is not an image.

    Args:
        files: PNG, JPEG, WebP, BMP, GIF or AVIF images; - reads standard input.
        store: Folder of published bundles.
        threads: Inference threads.
        model: Name of the model; by default the first by name.
    """
    from app.runtime.families.digits import Classify

    require_files("classify", files)
    predictor = open_predictor(store, "digits", model, threads)
    widths = _print_heading(files, "digit", "confidence", "rejected")

    def show(file: Path, answer: "Classification") -> None:
        digit = "-" if answer.digit is None else str(answer.digit)
        print_row([str(file), digit, f"{answer.confidence:.4f}", answer.reason or ""], widths)

    return _answer_files(predictor, files, Classify, show)


def caption(
    files: tyro.conf.Positional[tuple[Path, ...]],
    store: Path,
    threads: int,
    beam: int = 3,
    alternatives: int = 0,
    model: str | None = None,
) -> int:
    """Print a caption of each photograph. Exit with status 1 if a file is not an image.

    Args:
        files: PNG, JPEG, WebP, BMP, GIF or AVIF images; - reads standard input.
        store: Folder of published bundles.
        threads: Inference threads.
        beam: Beam width, 1 to 10.
        alternatives: Maximum number of further captions per image.
        model: Name of the model; by default the first by name.
    """
    from app.runtime.families.captions import Describe
    from app.runtime.fields import require_ranges

    require_files("caption", files)
    require_ranges(Describe(b"", beam=beam, alternatives=alternatives))  # before any file is reported
    predictor = open_predictor(store, "captions", model, threads)
    widths = _print_heading(files, "log-probability", "caption")

    def show(file: Path, answer: "Description") -> None:
        print_row([str(file), f"{answer.log_probability:.4f}", answer.text], widths)
        for other in answer.alternatives:
            print_row(["", f"{other.log_probability:.4f}", other.caption], widths)

    return _answer_files(predictor, files, partial(Describe, beam=beam, alternatives=alternatives), show)


def _answer_files(
    predictor: "Predictor[Any, Any, Any]",
    files: Sequence[Path],
    make_payload: Callable[[bytes, str], Any],
    show: Callable[[Path, Any], None],
) -> int:
    """Show the answer to each image; report each file that is not an image, and return FAILED if there is one."""
    from app.runtime.predictor import answer_all

    status = 0
    for start in range(0, len(files), BATCH):
        examples = list[tuple[Path, Any]]()
        for file in files[start : start + BATCH]:
            try:
                examples.append((file, predictor.prepare(make_payload(_content(file), str(file)))))
            except (CorpusError, Malformed, TooLarge) as error:
                print_error(error)
                status = FAILED
        for (file, _), answer in zip(examples, answer_all(predictor, [one for _, one in examples]), strict=True):
            show(file, answer)
    return status


def _content(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise CorpusError(f"{file}: can't be read: {error.strerror}") from error


def _print_heading(files: Sequence[Path], *columns: str) -> list[int]:
    """Print the heading of a table whose rows follow one by one, and return the widths of its columns."""
    heading = ["file", *columns]
    widths = [max(map(len, ["file", *map(str, files)])), *map(len, columns)]
    print_row(heading, widths)
    return widths
