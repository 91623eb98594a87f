"""Tiny runs of every recipe: `python -m tests.training.ranks FOLDER`, as it is or by torchrun."""

import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.text import Vocabulary
from tests.drawn_digits import corpus as drawn_corpus
from training.captions import recipe as captions
from training.captions import validation
from training.captions.config import CaptionsConfig
from training.captions.data import CaptionCorpus, Source, Split
from training.captions.scores import score
from training.captions.vocabulary import count_vocabulary
from training.corpora.documents import DocumentCorpus, load
from training.digits import recipe as digits
from training.language_model import recipe as language_model
from training.language_model import subword_recipe
from training.language_model.data import Corpus
from training.language_model.data import Source as TextSource
from training.language_model.tokenizer import train_tokenizer
from training.run import Run

TOKENS = 30
LANGUAGE_MODEL = replace(
    language_model.PRESETS["cpu"],
    vocabulary_size=TOKENS,
    embedding_size=12,
    hidden_sizes=(16, 12),
    batch_size=4,
    steps=6,
    epochs=2,
    precision="32-true",
)
DROPOUT = ("input_dropout", "hidden_dropout", "output_dropout", "embedding_dropout", "weight_drop")
DIGITS = digits.DigitsConfig(  # without augmentation
    reader="renet",
    cell="gru",
    hidden_sizes=(4, 6),
    patches=(4, 7),
    batch_size=20,
    samples=120,
    label_smoothing=0.02,
    optimiser="adamw",
    learning_rate=4e-3,
    schedule="one-cycle",
    clip=1.0,
    average=0.9,
)
SUBWORD = replace(
    subword_recipe.PRESETS["everyday"],
    embedding_size=8,
    width=8,
    layers=2,
    hidden_size=8,
    inner_size=8,
    batch_size=4,
    window=7,
    steps=12,
    warm_up=3,
    average_every=2,
    validate_every=6,
    validation_pieces=50,
    compiled=False,
    precision="32-true",
    dropout=0.0,
    p_reset=1.0,
    full_softmax=1.0,  # no negatives
)
CAPTIONS = CaptionsConfig(
    cell="gru",
    views=1,
    min_count=1,
    embedding_size=16,
    hidden_size=16,
    input_dropout=0.0,
    output_dropout=0.0,
    averaging=0.9,
    batch_size=5,  # the ranks' parts differ in size
    epochs=2,
    length=6,
    precision="32-true",
)


def text() -> Corpus:
    """A text of random tokens."""
    ids = np.random.default_rng(1).integers(TOKENS, size=300).astype(np.int32)
    vocabulary = Vocabulary(["<eos>", "<unk>", *map(str, range(TOKENS - 2))])
    return Corpus(TextSource("random", {}, "none"), vocabulary, ids, ids[:50], ids[:50], {})


def documents(folder: Path) -> DocumentCorpus:
    """Documents of random words."""
    draw = random.Random(1)
    for split, lines in (("train", 60), ("valid", 15)):
        words = (" ".join(draw.choices("ab cab bac abba".split(), k=6)) for _ in range(lines))
        (folder / f"sms.{split}.txt").write_text("\n\n".join(words))
    tokenizer = train_tokenizer([folder], folder / "tokenizer.json", pieces=300, every=1)
    return load([folder], tokenizer, cache=folder / "cache")


def photographs() -> CaptionCorpus:
    """Photographs of five kinds, their captions of one to five words."""

    def split(name: str, count: int) -> Split:
        kinds = [number % 5 for number in range(count)]
        said = tuple((" ".join("abcde"[: kind + 1]),) for kind in kinds)
        return Split(tuple(map(str, range(count))), said, np.eye(5, dtype=np.float32)[kinds][:, None])

    splits = {"train": split("train", 23), "val": split("val", 5)}
    vocabulary = count_vocabulary((caption for (caption,) in splits["train"].captions), 1)
    return CaptionCorpus(Source("kinds", Path(), "none"), vocabulary, "none", splits, {}, {})


def train_all(folder: Path) -> None:
    """Train each recipe without random draws, and a language model with them, at once and in pieces."""
    with tempfile.TemporaryDirectory() as texts:
        corpus = documents(Path(texts))
        config = replace(SUBWORD, vocabulary_size=len(corpus.tokenizer))
        subword_recipe.train(config, corpus, Run(folder / "subword-language-model"))
    vars(validation)["score"] = partial(score, java=None)  # METEOR takes most of a minute to start
    plain = replace(LANGUAGE_MODEL, **dict.fromkeys(DROPOUT, 0.0))  # type: ignore[arg-type]
    recipes: dict[str, tuple[Callable[..., bool], Any, Any]] = {
        "language-model": (language_model.train, plain, text()),
        "digits": (digits.train, DIGITS, drawn_corpus()),
        "captions": (captions.train, CAPTIONS, photographs()),
        "whole": (language_model.train, LANGUAGE_MODEL, text()),
    }
    for name, (train, config, corpus) in recipes.items():
        train(config, corpus, Run(folder / name))
    while not language_model.train(LANGUAGE_MODEL, text(), Run(folder / "pieces"), resume=True, minutes=0):
        pass


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
