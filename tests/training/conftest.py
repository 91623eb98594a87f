"""A tiny corpus, and every preset in a size that trains in a blink."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from lightning.fabric.wrappers import _FabricModule

from training.language_model import data as texts
from training.language_model.data import Corpus, Source
from training.language_model.recipe import PRESETS, LanguageModelConfig, train
from training.run import Run
from training.session import Session

WORDS = """
the company bank said its profits shares rose fell N % in to market mr. smith new york
"""
SENTENCES = {"train": 15, "valid": 6, "test": 5}  # of six words each


@pytest.fixture(autouse=True)
def tokenised_here(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Use a cache of the test's own by default."""
    monkeypatch.setattr(texts, "load", partial(texts.load, cache=tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def wrapped_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that Fabric's wrapper has called: gradients are synchronised between processes there only."""
    calls, forward = list[str](), _FabricModule.forward

    def counted(self: _FabricModule, *args: Any, **kwargs: Any) -> Any:
        calls.append(type(self.module).__name__)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(_FabricModule, "forward", counted)
    return calls


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    """Call a function with the state of the run after every training step."""
    stops = Session.stops

    def register(note: Callable[[dict[str, Any]], None]) -> None:
        def noted(session: Session, state: dict[str, Any]) -> bool:
            note(state)
            return stops(session, state)

        monkeypatch.setattr(Session, "stops", noted)

    return register


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(1)
    files = {split: folder / f"tiny.{split}.txt" for split in SENTENCES}
    for split, path in files.items():
        path.write_text("".join(" ".join(draw.choices(WORDS.split(), k=6)) + "\n" for _ in range(SENTENCES[split])))
    return Source("tiny", files, "free for all", caveats=("It knows of banks alone, at $1 a word.",))


@pytest.fixture(scope="session")
def corpus(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return texts.load(source, 1000, cache=tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="session")
def shrunk(corpus: Corpus) -> Callable[[str], LanguageModelConfig]:
    """A preset by name, the same but for its sizes and its length."""

    def shrink(preset: str) -> LanguageModelConfig:
        config = PRESETS[preset]
        return replace(
            config,
            vocabulary_size=len(corpus.vocabulary),
            embedding_size=12,
            hidden_sizes=(*(16 for _ in config.hidden_sizes[1:]), 12),
            batch_size=4,
            steps=6,
            epochs=2,
            evaluation_batch=min(config.evaluation_batch, 2),
        )

    return shrink


@pytest.fixture(scope="session")
def finished(
    corpus: Corpus, shrunk: Callable[[str], LanguageModelConfig], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A finished run of the shrunk `cpu` preset. Read only: copy it before a change."""
    run = Run(tmp_path_factory.mktemp("runs") / "finished")
    train(shrunk("cpu"), corpus, run)
    return run
