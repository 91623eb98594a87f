"""The command line of offline training: `python -m training digits best --run runs/best`."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from safetensors.torch import load_file

from app.errors import CorpusError, SeqserveError
from app.text.subword import SubwordTokenizer
from training import measurements, plots
from training.captions.attentive.publish import is_attentive
from training.captions.attentive.publish import publish as publish_attentive
from training.captions.commands import attentive_captions, captions
from training.captions.publish import publish as publish_captions
from training.corpora import documents
from training.corpora.files import locked, replaced
from training.digits import data as mnist
from training.digits import number_recipe
from training.digits import recipe as digits_recipe
from training.digits.negatives import photographs_in
from training.digits.number_publish import publish as publish_numbers
from training.digits.publish import publish as publish_digits
from training.language_model import data as texts
from training.language_model import recipe as language_model_recipe
from training.language_model import subword_recipe
from training.language_model.publish import publish as publish_language_model
from training.language_model.subword_publish import is_subword
from training.language_model.subword_publish import publish as publish_subword
from training.language_model.tokenizer import train_tokenizer
from training.run import Run, RunError
from training.session import Job

if TYPE_CHECKING:
    LanguageModelPreset = language_model_recipe.LanguageModelConfig
    SubwordPreset = subword_recipe.SubwordLanguageModelConfig
    DigitsPreset = digits_recipe.DigitsConfig
    NumbersPreset = number_recipe.NumbersConfig
else:
    LanguageModelPreset = tyro.extras.subcommand_type_from_defaults(
        language_model_recipe.PRESETS, sort_subcommands=False
    )
    SubwordPreset = tyro.extras.subcommand_type_from_defaults(subword_recipe.PRESETS, sort_subcommands=False)
    DigitsPreset = tyro.extras.subcommand_type_from_defaults(digits_recipe.PRESETS, sort_subcommands=False)
    NumbersPreset = tyro.extras.subcommand_type_from_defaults(number_recipe.PRESETS, sort_subcommands=False)

PUBLISH: dict[str, Callable[..., Path]] = {  # by family
    "language_model": publish_language_model,
    "digits": publish_digits,
    "numbers": publish_numbers,
    "captions": publish_captions,
}


def language_model(
    config: tyro.conf.OmitArgPrefixes[LanguageModelPreset],
    job: tyro.conf.OmitArgPrefixes[Job],
    data_folder: Annotated[Path | None, tyro.conf.arg(name="data")] = None,
    train_text: Annotated[Path | None, tyro.conf.arg(name="train")] = None,
    valid_text: Annotated[Path | None, tyro.conf.arg(name="valid")] = None,
    test_text: Annotated[Path | None, tyro.conf.arg(name="test")] = None,
    terms: str = "not stated",
) -> None:
    """Train a language model; without texts of your own, on the Penn Treebank.

    Args:
        config: What to train; every field of a preset can be set.
        job: Folder and length of the run.
        data_folder: Folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt; left out, they are downloaded once.
        train_text: A text of your own, whitespace-separated tokens, a sentence a line (with valid and test).
        valid_text: Text that is scored after every epoch.
        test_text: Text that is scored once, when the model is published.
        terms: Terms of use of your text, for the model card.
    """
    own = {"train": train_text, "valid": valid_text, "test": test_text}
    name = re.sub(r"[^a-z0-9._-]", "-", job.run.resolve().name.lower()).lstrip("._-")[:64]
    source = _source(data_folder, own, name or "corpus", terms)
    corpus = texts.load(source, config.vocabulary_size)
    job.train(language_model_recipe.train, replace(config, vocabulary_size=len(corpus.vocabulary)), corpus)
    if os.environ.get("RANK", "0") == "0" and (metrics := Run(job.run).metrics()):
        plots.learning_curve(metrics, job.run / "curves.png", job.run.resolve().name)


def tokenizer(
    data: tuple[Path, ...], output: Path = Path("tokenizer.json"), pieces: int = 16_384, every: int = 2
) -> None:
    """Train a byte-level BPE tokenizer on the training texts of some folders.

    Args:
        data: Folders with NAME.train.txt, plain, .gz or .xz, a blank line between documents.
        output: The file to write.
        pieces: Size of the vocabulary.
        every: Train on every so-many-th document.
    """
    trained = train_tokenizer(data, output, pieces=pieces, every=every)
    print(f"{output}: {len(trained)} pieces")


def subword_language_model(
    config: tyro.conf.OmitArgPrefixes[SubwordPreset],
    job: tyro.conf.OmitArgPrefixes[Job],
    data: tuple[Path, ...],
    tokenizer_file: Annotated[Path | None, tyro.conf.arg(name="tokenizer")] = None,
) -> None:
    """Train an open-vocabulary language model on documents of many sources.

    Args:
        config: What to train; every field of a preset can be set.
        job: Folder and length of the run.
        data: Folders with NAME.train.txt and NAME.valid.txt, plain, .gz or .xz, a blank line between documents.
        tokenizer_file: A tokenizer.json of `tokenizer`; left out, one is trained on the data.
    """
    kept = job.run / "tokenizer.json"
    with locked(kept):  # of several ranks one trains
        if not kept.exists():
            if tokenizer_file:
                with replaced(kept) as partial:
                    shutil.copyfile(tokenizer_file, partial)
            else:
                train_tokenizer(data, kept, pieces=config.vocabulary_size)
    encoder = SubwordTokenizer.read(kept)
    corpus = documents.load(data, encoder, lowered=config.lowered)
    job.train(subword_recipe.train, replace(config, vocabulary_size=len(encoder)), corpus, saved_every=600)


def digits(
    config: tyro.conf.OmitArgPrefixes[DigitsPreset],
    job: tyro.conf.OmitArgPrefixes[Job],
    data_folder: Annotated[Path | None, tyro.conf.arg(name="data")] = None,
    photographs: Path | None = None,
    weights: Path | None = None,
) -> None:
    """Train a reader of handwritten digits on MNIST.

    Args:
        config: What to train; every field of a preset can be set.
        job: Folder and length of the run.
        data_folder: Folder with MNIST/raw/*.gz, as torchvision lays them; left out, they are downloaded once.
        photographs: A folder or a tar of JPEG files, used as images of no digit beside the drawn ones.
        weights: A bundle's weights.safetensors to start from; left out, weights are random.
    """
    corpus = mnist.load(data_folder)
    shown = photographs_in(photographs) if photographs else ()
    start = load_file(weights) if weights else None
    job.train(digits_recipe.train, config, corpus, photographs=shown, weights=start)


def numbers(
    config: tyro.conf.OmitArgPrefixes[NumbersPreset],
    job: tyro.conf.OmitArgPrefixes[Job],
    data_folder: Annotated[Path | None, tyro.conf.arg(name="data")] = None,
) -> None:
    """Train a reader of handwritten numbers on rows of MNIST's digits.

    Args:
        config: What to train; every field of a preset can be set.
        job: Folder and length of the run.
        data_folder: Folder with MNIST/raw/*.gz, as torchvision lays them; left out, they are downloaded once.
    """
    job.train(number_recipe.train, config, mnist.load(data_folder))


def publish(
    run: tyro.conf.Positional[Path],
    store: Path = Path("models_store"),
    name: str | None = None,
    version: str | None = None,
    photographs: Path | None = None,
    data: tuple[Path, ...] = (),
    unfinished: bool = False,
) -> None:
    """Measure a finished run and write it into the store as the version to serve.

    Args:
        run: The run's folder.
        store: The folder of all models.
        name: The model's name; left out, the corpus's or, for texts of your own, the run's folder.
        version: The version's name; left out, today's date.
        photographs: For digits: a folder or a tar of JPEG files that must be rejected, not those of training.
        data: For a subword language model: the folders of its texts.
        unfinished: For a subword language model: publish it as it is now.
    """
    finished = Run(run)
    family = finished.read("environment.json").get("family")
    if family not in PUBLISH:
        path = run / "environment.json"
        raise RunError(f"{path}: expected the family {' or '.join(PUBLISH)}, found {family!r}")
    publisher = PUBLISH[family]
    if is_subword(finished):
        publisher = publish_subword
    elif family == "captions" and is_attentive(finished):
        publisher = publish_attentive
    sent = {"photographs": photographs, "data": data, "unfinished": unfinished}
    further = {option: value for option, value in sent.items() if value}
    if foreign := further.keys() - signature(publisher).parameters.keys():
        raise RunError(f"--{min(foreign)}: expected no such option with this run of the family {family}, found one")
    print(publisher(finished, store, name=name, version=version, **further))


def main() -> None:
    """Run the command that the arguments name; a SeqserveError becomes one line on stderr and exit status 1."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "language-model": language_model,
                "subword-language-model": subword_language_model,
                "tokenizer": tokenizer,
                "digits": digits,
                "numbers": numbers,
                "captions": captions,
                "attentive-captions": attentive_captions,
                "cells": measurements.cells,
                "publish": publish,
                "evaluate": measurements.evaluate,
                "typing": measurements.typing,
                "robustness": measurements.robustness,
            },
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


if __name__ == "__main__":
    main()
