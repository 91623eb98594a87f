"""The command line of offline training: `python -m training language-model cpu --run runs/cpu`."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from app.errors import CorpusError, SeqserveError
from training import data, report
from training.language_model import PRESETS, LanguageModelConfig, train
from training.publish import publish as publish_run
from training.run import Run

if TYPE_CHECKING:
    Preset = LanguageModelConfig
else:
    Preset = tyro.extras.subcommand_type_from_defaults(PRESETS, sort_subcommands=False)


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
        run: Folder for the checkpoint, the metrics and the configuration.
        data_folder: Folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt; left out, they are downloaded once.
        train_text: A text of your own, tokens parted by white space, a sentence a line (with valid and test).
        valid_text: Chooses nothing, measures every epoch.
        test_text: Measured once, when the model is published.
        terms: On what terms your text may be used; the model card says it.
        resume: Go on where the run's checkpoint stands.
        minutes: Stop after this long; go on with --resume.
    """
    source = _source(data_folder, {"train": train_text, "valid": valid_text, "test": test_text}, terms)
    corpus = data.load(source, config.vocabulary_size)
    config = dataclasses.replace(config, vocabulary_size=len(corpus.vocabulary))
    job = Run(run)
    if train(config, corpus, job, resume=resume, minutes=minutes):
        report.learning_curve(job.metrics(), run / "curves.png", run.name)
    else:
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
        name: The model's name; left out, the corpus's.
        version: The version's name; left out, today's date.
    """
    print(publish_run(Run(run), store, name=name, version=version))


def main() -> None:
    """Run the command that the arguments name; a SeqserveError is one line on stderr and exit status 1."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"language-model": language_model, "publish": publish},
            prog="python -m training",
            sort_subcommands=False,
            config=(tyro.conf.CascadeSubcommandArgs,),
        )
    except SeqserveError as error:
        sys.exit(f"error: {error}")


def _source(folder: Path | None, texts: dict[str, Path | None], terms: str) -> data.Source:
    given = {split: path for split, path in texts.items() if path is not None}
    if not given:
        return data.penn_treebank(folder)
    if folder or len(given) < len(texts):
        raise CorpusError(f"expected --train, --valid and --test, or --data alone; found --{' --'.join(sorted(given))}")
    return data.Source(given["train"].name.split(".")[0].lower(), given, terms)


if __name__ == "__main__":
    main()
