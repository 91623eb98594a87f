"""Commands of `python -m training` that measure trained models."""

import json
import random
from pathlib import Path
from typing import Annotated

import tyro

from app import bundle as bundles
from app.errors import CorpusError
from app.runtime.families.digits import DigitsPredictor
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.loading import load_predictor
from training.cells.comparison import Corpora, measure
from training.cells.plan import PARTS, Comparison, Part
from training.cells.report import write
from training.digits import data as mnist
from training.digits.negatives import photographs_in
from training.digits.publish import benchmark
from training.digits.robustness import table
from training.evaluate import score_files
from training.language_model import contrast, typing_evaluation, typing_report


def evaluate(
    files: tyro.conf.Positional[tuple[Path, ...]], store: Path = Path("models_store"), model: str = "ptb"
) -> None:
    """Score text files, each as one document, with the model that the store serves: a line each, tab-separated.

    Args:
        files: Files in UTF-8, gzipped if they end in .gz, a sentence a line.
        store: The folder of all models.
        model: The model's name.
    """
    if not files:
        raise CorpusError("evaluate: expected a file, found none")
    scores = score_files(_language_model(store, model), files)
    print("file", "tokens", "unknown", "perplexity", "perplexity excluding unknown", sep="\t")
    for file, score in zip(files, scores, strict=True):
        perplexities = (f"{score.perplexity:.2f}", f"{score.perplexity_excluding_unknown:.2f}")
        print(file, score.tokens, score.unknown_tokens, *perplexities, sep="\t")


def typing(
    data: tuple[Path, ...],
    words: int = 10_000,
    lines: int = contrast.LINES,
    source: tuple[str, ...] = (),
    store: Path = Path("models_store"),
    model: tuple[str, ...] = ("ptb",),
    plot: Path | None = None,
    adapt: bool = False,
) -> None:
    """Measure language models on validation texts of everyday English, by register, with 95 % bootstrap intervals.

    Simulated writers take suggestions (top-1, top-3, keystroke savings), texts are scored (bits a byte, word
    perplexity), and lines of English are compared with spoilt ones. The last line is
    JSON.

    Args:
        data: Folders with NAME.valid.txt, plain, .gz or .xz, a blank line between documents.
        words: Words of each source, about, in whole documents; 0 for all.
        lines: Lines of each contrast set.
        source: Names of the sources; left out, all of them.
        store: The folder of all models.
        model: The models' names.
        plot: A PNG of the results by register.
        adapt: Adapt the suggestions to each document's own words and, in mail, blogs and SMS, to documents before it.
    """
    predictors = {name: _language_model(store, name, typing_evaluation.CACHE_BYTES) for name in model}
    texts = typing_evaluation.validation_sample(data, words or None, source)
    histories = typing_evaluation.earlier_texts(data, texts) if adapt else None
    english = contrast.english_lines(texts, lines, random.Random(1))  # noqa: S311 - no secret
    reports, separations = {}, {}
    for name, predictor in predictors.items():
        reports[name] = typing_evaluation.evaluate_typing(predictor, texts, histories=histories)
        separations[name] = contrast.evaluate(typing_evaluation.bits_a_byte(predictor), english)
        print(f"\n{name}\n\n{typing_report.table(reports[name])}")
    print(f"\n{contrast.table(separations)}\n")
    if plot:
        typing_report.plot(reports, plot, f"{', '.join(model)}: {words or 'all'} words a source")
    aucs = {name: {kind: found.auc for kind, found in separations[name].items()} for name in model}
    print(json.dumps({name: {"macro": reports[name].macro(), "auc": aucs[name]} for name in model}))


def robustness(
    data_folder: Annotated[Path | None, tyro.conf.arg(name="data")] = None,
    photographs: Path | None = None,
    limit: int | None = None,
    store: Path = Path("models_store"),
    model: str = "digits",
) -> None:
    """Test the robustness of the served digit reader: MNIST-C's corruptions, variants, images of no digit.

    Args:
        data_folder: Folder with MNIST/raw/*.gz; left out, they are downloaded once.
        photographs: A folder or a tar of JPEG files that must be rejected.
        limit: Use only this many test digits.
        store: The folder of all models.
        model: The model's name.
    """
    predictor = load_predictor(_current(store, model))
    if not isinstance(predictor, DigitsPredictor):
        raise CorpusError(f"robustness: expected a digit reader, found {model}")
    shown = photographs_in(photographs) if photographs else ()
    print(table(benchmark(predictor, mnist.load(data_folder).test, shown, limit)))


def cells(
    config: Annotated[Comparison, tyro.conf.arg(name="")] = Comparison(),  # noqa: B008 - frozen
    run: Path = Path("runs/cells"),
    report_folder: Annotated[Path | None, tyro.conf.arg(name="report")] = None,
    ptb: Path | None = None,
    mnist_folder: Annotated[Path | None, tyro.conf.arg(name="mnist")] = None,
    part: tuple[Part, ...] = PARTS,
    jobs: int = 1,
) -> None:
    """Compare the six cells on the Penn Treebank, on MNIST and on the adding problem, and write a report.

    Finished measurements are not repeated: a stopped command continues when given again.

    Args:
        config: What to compare; every field can be set.
        run: Folder for all runs and their results.
        report_folder: Folder for README.md with its plots; left out, the folder `report` of the run.
        ptb: Folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt; left out, they are downloaded once.
        mnist_folder: Folder with MNIST/raw/*.gz; left out, they are downloaded once.
        part: Measure these parts only; the report is of all that is measured.
        jobs: Parallel runs, each on one thread.
    """
    measure(config, run, Corpora(ptb, mnist_folder), part, jobs)
    folder = report_folder or run / "report"
    for name in write(config, run, folder):
        print(f"not measured: {name}")
    print(folder / "README.md")


def _language_model(store: Path, model: str, cache_bytes: int = 0) -> LanguageModelPredictor:
    predictor = load_predictor(_current(store, model), cache_bytes=cache_bytes)
    if not isinstance(predictor, LanguageModelPredictor):
        raise CorpusError(f"model: expected a language model, found {model}, which is none")
    return predictor


def _current(store: Path, model: str) -> bundles.Bundle:
    return bundles.read(store / model / bundles.current(store, model))
