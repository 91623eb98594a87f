"""The command line: `seqserve serve|suggest|score|classify|caption|models|keys`."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, Literal

import tyro

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, CorpusError, Malformed, SeqserveError, SettingsError, TooLarge, UnknownModel
from app.settings import Settings, unknown_variables

if TYPE_CHECKING:  # slow imports, made by each command
    from app.runtime.families.captions import Description
    from app.runtime.families.digits import Classification
    from app.runtime.families.language_model import LanguageModelPredictor
    from app.runtime.predictor import Predictor
    from app.runtime.scores import TextScore

MAX_LINE: Final = 2**22  # characters; each line is held in memory
BATCH: Final = 32  # images decoded and predicted together
FAILED: Final = 1  # exit statuses
USAGE: Final = 2
HEADLINE_METRICS: Final = {  # the metric of the manifest shown for each family
    "test_perplexity": "perplexity {:.2f}",
    "valid_bits_per_byte": "{:.3f} bits a byte",
    "test_accuracy": "accuracy {:.2%}",
    "test_cider": "CIDEr {:.1f}",
}


def serve(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> int:
    """Start the server. Each option can also be set as SEQSERVE_…; options override the environment."""
    from app.server import serve

    return serve.serve(settings)


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

    predictor: LanguageModelPredictor = _predictor(store, "language_model", model, threads)
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
) -> None:
    """Print the perplexity of text files of any size, each as one document, and of all files together.

    Args:
        files: UTF-8 files, one sentence per line; - reads standard input.
        store: Folder of published bundles.
        threads: Inference threads.
        mode: Score each sentence in the context of the document, or on its own.
        model: Name of the model; by default the first by name.
    """
    from app.runtime.scores import pooled

    _require_files("score", files)
    predictor: LanguageModelPredictor = _predictor(store, "language_model", model, threads)
    scores = []
    for file in files:
        scores.append(_score_file(predictor, file, mode))
        _print_score(scores[-1], str(file) if len(files) > 1 else None)
    if len(files) > 1:
        _print_score(pooled(scores), "all")


def classify(files: tyro.conf.Positional[tuple[Path, ...]], store: Path, threads: int, model: str | None = None) -> int:
    """Print the digit in each image and its confidence. Exit with status 1 if a file is not an image.

    Args:
        files: PNG, JPEG, WebP, BMP, GIF or AVIF images; - reads standard input.
        store: Folder of published bundles.
        threads: Inference threads.
        model: Name of the model; by default the first by name.
    """
    from app.runtime.families.digits import Classify

    _require_files("classify", files)
    predictor = _predictor(store, "digits", model, threads)
    widths = _print_heading(files, "digit", "confidence", "rejected")

    def show(file: Path, answer: "Classification") -> None:
        digit = "-" if answer.digit is None else str(answer.digit)
        _print_row([str(file), digit, f"{answer.confidence:.4f}", answer.reason or ""], widths)

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

    _require_files("caption", files)
    Describe(b"", beam=beam, alternatives=alternatives).require_ranges()  # before any file is reported
    predictor = _predictor(store, "captions", model, threads)
    widths = _print_heading(files, "log-probability", "caption")

    def show(file: Path, answer: "Description") -> None:
        _print_row([str(file), f"{answer.log_probability:.4f}", answer.caption], widths)
        for other in answer.alternatives:
            _print_row(["", f"{other.log_probability:.4f}", other.caption], widths)

    return _answer_files(predictor, files, partial(Describe, beam=beam, alternatives=alternatives), show)


def models(store: Path) -> None:
    """List the models of the store, damaged ones with the reason.

    Args:
        store: Folder of published bundles.
    """
    columns: dict[str, Callable[[Bundle], str]] = {
        "name": lambda bundle: bundle.manifest.model,
        "version": lambda bundle: bundle.manifest.version,
        "family": lambda bundle: bundle.manifest.family,
        "parameters": lambda bundle: f"{bundle.manifest.parameters:,}",
        "served": lambda bundle: bundle.manifest.served,
        "test": lambda bundle: _headline_metric(bundle.manifest.metrics),
        "bytes": lambda bundle: f"{sum(entry.bytes for entry in bundle.manifest.files.values()):,}",
    }
    rows, damaged = [list(columns)], []
    for name in bundles.models(store):
        try:
            bundle = _bundle(store, name)
        except BundleError as error:
            damaged.append(f"{name}  damaged: {error}")
        else:
            rows.append([cell(bundle) for cell in columns.values()])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _print_row(row, widths)
    print(*damaged, sep="\n", end="\n" if damaged else "")


def keys(
    action: tyro.conf.Positional[Literal["new"]],
    name: tyro.conf.Positional[str],
    file: Path | None,
    scope: Literal["predict", "admin"] = "predict",
    expires: str | None = None,
) -> None:
    """Create an API key and print it once: the file stores only its hash.

    Args:
        action: The action.
        name: Name of the client, for the log and the rate limit.
        file: Key file, which the server reads from SEQSERVE_API_KEYS_FILE; created if missing.
        scope: predict, or admin to read /metrics and activate versions too.
        expires: Date or time (ISO 8601) at which the key expires; by default never.
    """
    from app.api.http.keys import create, moment

    if file is None:
        raise SettingsError(f"keys {action}: expected SEQSERVE_API_KEYS_FILE or --file, found neither")
    try:
        until = moment(expires) if expires else None
    except ValueError as error:
        raise SettingsError(f"--expires: expected a date or time in ISO 8601, found {expires!r}") from error
    print(create(file, name, scope, until))


def main() -> None:
    """Run the command line. A SeqserveError is printed as one line on stderr, without a traceback."""
    try:
        settings = Settings()
        if sys.argv[1:2] != ["serve"]:  # which logs them
            for warning in unknown_variables(os.environ):
                _print_error(warning)
        status = tyro.extras.subcommand_cli_from_dict(
            {
                "serve": partial(serve, settings=settings),
                "suggest": partial(suggest, store=settings.store, threads=settings.threads),
                "score": partial(score, store=settings.store, threads=settings.threads),
                "classify": partial(classify, store=settings.store, threads=settings.threads),
                "caption": partial(caption, store=settings.store, threads=settings.threads),
                "models": partial(models, store=settings.store),
                "keys": partial(keys, file=settings.api_keys_file),
            },
            prog="seqserve",
            description="Serve recurrent sequence models over HTTP, or run them on the command line.",
            sort_subcommands=False,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        sys.stdout.flush()
        sys.exit(status)
    except SeqserveError as error:
        _print_error(error)
        sys.exit(USAGE if isinstance(error, SettingsError) else FAILED)
    except BrokenPipeError:  # the reader closed the pipe; the interpreter's final flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)


def _predictor(store: Path, family: str, model: str | None, threads: int) -> Any:
    """Load the predictor of the named model, or of the family's first."""
    from app.runtime.loading import load_predictor

    names = bundles.models(store)
    if model is not None and model not in names:
        raise UnknownModel(f"{model}: no such model; available: {', '.join(names) or 'none'}")
    bundle = _bundle(store, model) if model else _first(store, names, family)
    if bundle.manifest.family != family:
        raise UnknownModel(f"{model}: expected a {family} model, found one of {bundle.manifest.family}")
    return load_predictor(bundle, threads=threads)


def _first(store: Path, names: Sequence[str], family: str) -> Bundle:
    """Return the first bundle of the family; damaged bundles are reported and skipped."""
    for name in names:
        try:
            bundle = _bundle(store, name)
        except BundleError as error:
            _print_error(f"{name}: damaged: {error}")
        else:
            if bundle.manifest.family == family:
                return bundle
    raise UnknownModel(f"{store}: expected a {family} model, found none")


def _bundle(store: Path, model: str) -> Bundle:
    return bundles.read(store / model / bundles.current(store, model))


def _headline_metric(metrics: Mapping[str, float]) -> str:
    return next((form.format(metrics[name]) for name, form in HEADLINE_METRICS.items() if name in metrics), "-")


def _require_files(command: str, files: Sequence[Path]) -> None:
    if not files:
        raise SettingsError(f"{command}: expected a file, or - for standard input, found none")


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
                _print_error(error)
                status = FAILED
        for (file, _), answer in zip(examples, answer_all(predictor, [one for _, one in examples]), strict=True):
            show(file, answer)
    return status


def _standard_input() -> str:
    """Read a text from standard input, without a final line break."""
    try:
        with _open(Path("-")) as stream:
            return stream.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise _not_utf8("-", error) from error


def _not_utf8(name: object, error: UnicodeDecodeError) -> CorpusError:
    return CorpusError(f"{name}: expected UTF-8, found byte {error.object[error.start]:#04x}")


def _content(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise CorpusError(f"{file}: can't be read: {error.strerror}") from error


def _print_heading(files: Sequence[Path], *columns: str) -> list[int]:
    """Print the heading of a table whose rows follow one by one, and return the widths of its columns."""
    heading = ["file", *columns]
    widths = [max(map(len, ["file", *map(str, files)])), *map(len, columns)]
    _print_row(heading, widths)
    return widths


def _print_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _print_error(error: object) -> None:
    print(f"seqserve: {error}", file=sys.stderr)


def _score_file(predictor: "LanguageModelPredictor", file: Path, mode: Literal["document", "sentence"]) -> "TextScore":
    try:
        with _open(file) as stream:
            score = predictor.score_lines(_lines(stream, file), mode)
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


def _lines(stream: IO[str], file: Path) -> Iterator[tuple[str, int]]:
    """Yield lines with their line break, and their offsets; memory is bounded by the longest line."""
    offset = 0
    while line := stream.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            raise CorpusError(
                f"{file}: expected lines of at most {MAX_LINE} characters, found a longer one at offset {offset}"
            )
        yield line, offset
        offset += len(line)


def _print_score(score: "TextScore", title: str | None) -> None:
    """Print a score in the format of KenLM's `query`."""
    if title is not None:
        print(f"{title}:")
    print(f"Perplexity including OOVs:\t{score.perplexity:.4f}")
    print(f"Perplexity excluding OOVs:\t{score.perplexity_excluding_unknown:.4f}")
    print(f"OOVs:\t{score.unknown_tokens}")
    print(f"Tokens:\t{score.tokens}")


if __name__ == "__main__":
    main()
