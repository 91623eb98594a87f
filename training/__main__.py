"""The command line of offline training: `python -m training language-model cpu --run runs/cpu`."""

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from app import bundle as bundles
from app.errors import CorpusError, SeqserveError
from app.runtime.registry import load_predictor
from training import report
from training.data import texts
from training.evaluate import score_files
from training.language_model import PRESETS, LanguageModelConfig, train
from training.publish.language_model import publish as publish_language_model
from training.run import Run, RunError

if TYPE_CHECKING:
    Preset = LanguageModelConfig
else:
    Preset = tyro.extras.subcommand_type_from_defaults(PRESETS, sort_subcommands=False)

PUBLISH: dict[str, Callable[..., Path]] = {"language_model": publish_language_model}  # by family


def language_model(
    config: tyro.conf.OmitArgPrefixes[Preset],
    run: Path,
    data_folder: Annotated[Path | None, tyro.conf.arg(name="data")] = None,
    train_text: Annotated[Path | None, tyro.conf.arg(name="train")] = None,
    valid_text: Annotated[Path | None, tyro.conf.arg(name="valid")] = None,
    test_text: Annotated[Path | None, tyro.conf.arg(name="test")] = None,
    terms: str = "not stated",
    resume: bool = False,
    minutes: float = math.inf,
) -> None:
    """Train a language model; without texts of your own, on the Penn Treebank.

    Args:
        config: What to train; every field of a preset can be set.
        run: Folder for the checkpoint, the metrics and the configuration; a model of your own texts is named after it.
        data_folder: Folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt; left out, they are downloaded once.
        train_text: A text of your own, tokens parted by white space, a sentence a line (with valid and test).
        valid_text: Chooses nothing, measures every epoch.
        test_text: Measured once, when the model is published.
        terms: On what terms your text may be used; the model card says it.
        resume: Go on where the run's checkpoint stands.
        minutes: Stop after this long; go on with --resume.
    """
    own = {"train": train_text, "valid": valid_text, "test": test_text}
    source = _source(data_folder, own, _model_name(run), terms)
    corpus = texts.load(source, config.vocabulary_size)
    config = dataclasses.replace(config, vocabulary_size=len(corpus.vocabulary))
    job = Run(run)
    done = train(config, corpus, job, resume=resume, minutes=minutes)
    if metrics := job.metrics():
        report.learning_curve(metrics, run / "curves.png", run.resolve().name)
    if not done:
        print(f"{run}: stopped after {minutes:g} minutes; go on with --resume")


def publish(
    run: tyro.conf.Positional[Path],
    store: Path = Path("models_store"),
    name: str | None = None,
    version: str | None = None,
) -> None:
    """Measure a finished run and write it into the store as the version to serve.

    Args:
        run: The run's folder.
        store: The folder of all models.
        name: The model's name; left out, ptb or, for texts of your own, the run's folder.
        version: The version's name; left out, today's date.
    """
    finished = Run(run)
    family = finished.read("environment.json").get("family")
    if family not in PUBLISH:
        path = run / "environment.json"
        raise RunError(f"{path}: expected the family {' or '.join(PUBLISH)}, found {family!r}")
    print(PUBLISH[family](finished, store, name=name, version=version))


def evaluate(
    files: tyro.conf.Positional[tuple[Path, ...]], store: Path = Path("models_store"), model: str = "ptb"
) -> None:
    """Score text files, each as one document, with the model that the store serves: a line each, parted by tabs.

    Args:
        files: Files in UTF-8, gzipped if they end in .gz, a sentence a line.
        store: The folder of all models.
        model: The model's name.
    """
    if not files:
        raise CorpusError("evaluate: expected a file, found none")
    predictor = load_predictor(bundles.read(store / model / bundles.current(store, model)))
    scores = score_files(predictor, files)
    print("file", "tokens", "unknown", "perplexity", "perplexity excluding unknown", sep="\t")
    for file, score in zip(files, scores, strict=True):
        perplexities = (f"{score.perplexity:.2f}", f"{score.perplexity_excluding_unknown:.2f}")
        print(file, score.tokens, score.unknown_tokens, *perplexities, sep="\t")


def main() -> None:
    """Run the command that the arguments name; a SeqserveError is one line on stderr and exit status 1."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"language-model": language_model, "evaluate": evaluate, "publish": publish},
            prog="python -m training",
            sort_subcommands=False,
            config=(tyro.conf.CascadeSubcommandArgs,),
        )
    except SeqserveError as error:
        sys.exit(f"error: {error}")


def _source(folder: Path | None, own: dict[str, Path | None], name: str, terms: str) -> texts.Source:
    given = {split: path for split, path in own.items() if path is not None}
    if not given:
        return texts.penn_treebank(folder)
    if folder or len(given) < len(own):
        raise CorpusError(f"expected --train, --valid and --test, or --data alone; found --{' --'.join(sorted(given))}")
    return texts.Source(name, given, terms)


def _model_name(run: Path) -> str:
    """What a store may call the model of this run; `corpus` if the folder's name gives nothing."""
    return re.sub(r"[^a-z0-9._-]", "-", run.resolve().name.lower()).lstrip("._-")[:64] or "corpus"


if __name__ == "__main__":
    main()
