"""Documents of three sources, and the subword recipe in a size that trains in a blink."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from training.corpora.documents import DocumentCorpus, load
from training.language_model.subword_recipe import PRESETS, SubwordLanguageModelConfig
from training.language_model.tokenizer import train_tokenizer

WORDS = "the bank said Thanks for your help I don't know See you 10 , . café".split()


@pytest.fixture(scope="session")
def documents_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(1)
    for name, lines in (("sms", 40), ("aeslc", 60), ("sgd", 20)):
        for split, count in (("train", lines), ("valid", lines // 4)):
            text = "".join(" ".join(draw.choices(WORDS, k=6)) + "\n" * draw.choice([1, 2]) for _ in range(count))
            (folder / f"{name}.{split}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def document_corpus(documents_folder: Path) -> DocumentCorpus:
    tokenizer = train_tokenizer([documents_folder], documents_folder / "tokenizer.json", pieces=300, every=1)
    return load([documents_folder], tokenizer, cache=documents_folder / "cache")


@pytest.fixture(scope="session")
def subword_config(document_corpus: DocumentCorpus) -> SubwordLanguageModelConfig:
    return replace(
        PRESETS["everyday"],
        vocabulary_size=len(document_corpus.tokenizer),
        embedding_size=8,
        width=8,
        layers=2,
        hidden_size=8,
        inner_size=8,
        batch_size=4,
        window=7,
        steps=40,  # more than an epoch
        warm_up=3,
        negatives=50,
        average_every=2,
        compiled=False,
        validate_every=10,
        validation_pieces=50,
    )
