"""The command line: `seqserve serve|suggest|score|models`."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final, Literal

import tyro

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, CorpusError, SeqserveError, SettingsError, UnknownModel
from app.settings import Settings

if TYPE_CHECKING:  # what is slow to import, each command imports for itself
    from app.runtime.language_model import LanguageModelPredictor
    from app.runtime.scores import TextScore

MAX_LINE: Final = 2**22  # characters; a line is read as a whole
USAGE: Final = 2  # exit status


def serve(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    """Start the server. Each option may also be given as SEQSERVE_…; the option goes before the environment."""
    import logging
    import signal
    import socket

    import uvicorn

    from app.main import create_app

    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"{settings.url}: can't listen there: {error.strerror}") from error
    settings = settings.model_copy(update={"port": listening.getsockname()[1]})
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=settings.grace_s,
        )
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has stopped in peace
    server.run([listening])


def suggest(
    text: tyro.conf.Positional[str],
    store: Path,
    threads: int,
    top_k: int = 5,
    words: int = 1,
    complete: bool = False,
    model: str | None = None,
) -> None:
    """Suggest how a text may go on.

    Args:
        text: What was written so far.
        store: Folder of published bundles.
        threads: Threads of inference.
        top_k: Suggestions wanted at most.
        words: Words of a suggestion at most.
        complete: The text's last word is still being typed.
        model: Which model; by default the store's first.
    """
    from app.runtime.batching import answer_all
    from app.runtime.language_model import Suggest

    predictor = _predictor(store, model, threads)
    payload = Suggest(text, top_k, words, complete)
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
    """Print the perplexity of text files of any size, each as one document, and of all of them together.

    Args:
        files: Files in UTF-8, a sentence a line; - is standard input.
        store: Folder of published bundles.
        threads: Threads of inference.
        mode: Whether a sentence is read knowing those before it.
        model: Which model; by default the store's first.
    """
    from app.runtime.scores import pooled

    if not files:
        raise SettingsError("score: expected a file, or - for standard input, found none")
    predictor = _predictor(store, model, threads)
    scores = []
    for file in files:
        scores.append(_score_file(predictor, file, mode))
        _print_score(scores[-1], str(file) if len(files) > 1 else None)
    if len(files) > 1:
        _print_score(pooled(scores), "all")


def models(store: Path) -> None:
    """List the models of the store; a damaged one with the reason.

    Args:
        store: Folder of published bundles.
    """
    columns: dict[str, Callable[[Bundle], str]] = {
        "name": lambda bundle: bundle.manifest.model,
        "version": lambda bundle: bundle.manifest.version,
        "family": lambda bundle: bundle.manifest.family,
        "parameters": lambda bundle: f"{bundle.manifest.parameters:,}",
        "served": lambda bundle: bundle.manifest.served,
        "test perplexity": lambda bundle: f"{bundle.manifest.metrics.get('test_perplexity', float('nan')):.2f}",
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
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(*damaged, sep="\n", end="\n" if damaged else "")


def main() -> None:
    """Run the command that the arguments name; an error of ours is one line on stderr, and no traceback."""
    try:
        settings = Settings()
        tyro.extras.subcommand_cli_from_dict(
            {
                "serve": partial(serve, settings=settings),
                "suggest": partial(suggest, store=settings.store, threads=settings.threads),
                "score": partial(score, store=settings.store, threads=settings.threads),
                "models": partial(models, store=settings.store),
            },
            prog="seqserve",
            description="Serves recurrent sequence models over HTTP, or asks them here.",
            sort_subcommands=False,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        sys.stdout.flush()
    except SeqserveError as error:
        print(f"seqserve: {error}", file=sys.stderr)
        sys.exit(USAGE if isinstance(error, SettingsError) else 1)
    except BrokenPipeError:  # who read our output has enough; don't let the interpreter's last flush complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _predictor(store: Path, model: str | None, threads: int) -> "LanguageModelPredictor":
    from app.runtime.registry import load_predictor

    names = bundles.models(store)
    if model is None and not names:
        raise UnknownModel(f"{store}: expected a model, found none")
    if model is not None and model not in names:
        raise UnknownModel(f"{model}: no such model; there are: {', '.join(names) or 'none'}")
    return load_predictor(_bundle(store, model or names[0]), threads=threads, cache_bytes=0)


def _bundle(store: Path, model: str) -> Bundle:
    return bundles.read(store / model / bundles.current(store, model))


def _score_file(predictor: "LanguageModelPredictor", file: Path, mode: Literal["document", "sentence"]) -> "TextScore":
    try:
        with _open(file) as stream:
            score = predictor.score_lines(_lines(stream, file), mode)
    except OSError as error:
        raise CorpusError(f"{file}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}: expected UTF-8, found byte {error.object[error.start]:#04x}") from error
    if not score.tokens:
        raise CorpusError(f"{file}: expected text, found none")
    return score


def _open(file: Path) -> IO[str]:
    """Line breaks are those of `app.text.lines`."""
    return open(0 if str(file) == "-" else file, encoding="utf-8-sig", closefd=str(file) != "-")


def _lines(stream: IO[str], file: Path) -> Iterator[tuple[str, int]]:
    """Lines without their break, each with its offset; in memory that is bounded by the longest line."""
    offset = 0
    while line := stream.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            raise CorpusError(f"{file}: expected lines of at most {MAX_LINE} characters, found more at {offset}")
        yield line.removesuffix("\n"), offset
        offset += len(line)


def _print_score(score: "TextScore", title: str | None) -> None:
    """As KenLM's `query` does."""
    if title is not None:
        print(f"{title}:")
    print(f"Perplexity including OOVs:\t{score.perplexity:.4f}")
    print(f"Perplexity excluding OOVs:\t{score.perplexity_excluding_unknown:.4f}")
    print(f"OOVs:\t{score.unknown_tokens}")
    print(f"Tokens:\t{score.tokens}")


if __name__ == "__main__":
    main()
