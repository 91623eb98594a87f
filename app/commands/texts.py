"""`seqserve suggest` and `seqserve score`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal

import tyro

from app.commands.console import FAILED, print_error, require_files
from app.commands.store import open_predictor
from app.errors import CorpusError

if TYPE_CHECKING:  # slow imports, made by each command
    from app.runtime.families.language_model import LanguageModelPredictor
    from app.runtime.scores import TextScore

MAX_PART: Final = 2**20  # characters of a text in memory
WORDS: Final = re.compile(r".*\S(?= [^\W_])", re.DOTALL)  # up to the last single space before a word


def suggest(
    text: tyro.conf.Positional[str],
    store: Path,
    threads: int,
    top_k: int = 5,
    words: int = 1,
    complete: bool = False,
    model: str | None = None,
) -> None:
    """Suggest continuations of a text.

    Args:
        text: The text so far; - reads standard input, without a final line break.
        store: Folder of published bundles.
        threads: Inference threads.
        top_k: Maximum number of suggestions.
        words: Maximum number of words per suggestion.
        complete: Complete the last word of the text.
        model: Name of the model; by default the first by name.
    """
    from app.runtime.families.language_model import Suggest
    from app.runtime.predictor import answer_all

    predictor: LanguageModelPredictor = open_predictor(store, "language_model", model, threads)
    payload = Suggest(_standard_input() if text == "-" else text, top_k, words, complete)
    (answer,) = answer_all(predictor, [predictor.prepare(payload)])
    for suggestion in answer.suggestions:
        print(f"{suggestion.probability:.4f}\t{suggestion.text}")


def score(
    files: tyro.conf.Positional[tuple[Path, ...]],
    store: Path,
    threads: int,
    mode: Literal["document", "sentence"] = "document",
    model: str | None = None,
) -> int:
    """Print the perplexity of text files of any size, each as one document, and of all files together.

    A file that can't be scored is reported, and the exit status is 1.

    Args:
        files: UTF-8 files, one sentence per line; - reads standard input.
        store: Folder of published bundles.
        threads: Inference threads.
        mode: Score each sentence in the context of the document, or on its own.
        model: Name of the model; by default the first by name.
    """
    from app.runtime.scores import pooled

    require_files("score", files)
    predictor: LanguageModelPredictor = open_predictor(store, "language_model", model, threads)
    scores = []
    for file in files:
        try:
            scores.append(_score_file(predictor, file, mode))
        except CorpusError as error:
            print_error(error)
        else:
            _print_score(scores[-1], str(file) if len(files) > 1 else None)
    if len(files) > 1 and scores:
        _print_score(pooled(scores), "all")
    return 0 if len(scores) == len(files) else FAILED


def _standard_input() -> str:
    """Read a text from standard input, without a final line break."""
    try:
        with _open(Path("-")) as stream:
            return stream.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise _not_utf8("-", error) from error


def _not_utf8(name: object, error: UnicodeDecodeError) -> CorpusError:
    return CorpusError(f"{name}: expected UTF-8, found byte {error.object[error.start]:#04x}")


def _score_file(predictor: "LanguageModelPredictor", file: Path, mode: Literal["document", "sentence"]) -> "TextScore":
    try:
        with _open(file) as stream:
            score = predictor.score_lines(_parts(stream, file, whole_lines=mode == "sentence"), mode)
    except OSError as error:
        raise CorpusError(f"{file}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from error
    if not score.tokens:
        raise CorpusError(f"{file}: expected text, found none")
    return score


def _open(file: Path) -> IO[str]:
    """Open a UTF-8 file with the line breaks of `app.text.words.lines`."""
    return open(0 if str(file) == "-" else file, encoding="utf-8-sig", closefd=str(file) != "-")


def _parts(stream: IO[str], file: Path, *, whole_lines: bool) -> Iterator[tuple[str, int]]:
    """Yield lines with their line break, and their offsets; a line over MAX_PART is cut before a word.

    Raise CorpusError if there is none, or if `whole_lines` are needed.
    """
    offset, part = 0, ""
    while part := part + stream.readline(MAX_PART - len(part)):
        end = len(part)
        if end == MAX_PART and not part.endswith("\n"):
            words = None if whole_lines else WORDS.match(part)
            if words is None:
                expected = "a line break" if whole_lines else "a line break or a word"
                raise CorpusError(
                    f"{file}: expected {expected} within {MAX_PART} characters, found none at offset {offset}"
                )
            end = words.end()
        yield part[:end], offset
        offset, part = offset + end, part[end:]


def _print_score(score: "TextScore", title: str | None) -> None:
    """Print a score in the format of KenLM's `query`."""
    if title is not None:
        print(f"{title}:")
    print(f"Perplexity including OOVs:\t{score.perplexity:.4f}")
    print(f"Perplexity excluding OOVs:\t{score.perplexity_excluding_unknown:.4f}")
    print(f"OOVs:\t{score.unknown_tokens}")
    print(f"Tokens:\t{score.tokens}")
