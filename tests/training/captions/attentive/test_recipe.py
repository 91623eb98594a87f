"""The attentive recipe: learning, exact resume, the reward phase, batches."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from app.errors import SettingsError
from app.images import Detection
from training.captions.annotations import Photo
from training.captions.attentive import validation
from training.captions.attentive.config import PRESETS, AttentiveConfig
from training.captions.attentive.data import AttentiveCorpus, Split
from training.captions.attentive.recipe import build, train
from training.captions.attentive.sights import Encoders
from training.captions.attentive.training_set import TrainingSet
from training.captions.data import Source
from training.captions.scores import score
from training.captions.vocabulary import count_vocabulary
from training.run import Run

AfterStep = Callable[[Callable[[dict[str, Any]], None]], None]
BOX = (0.0, 0.0, 1.0, 1.0)
OBJECTS = ("dog", "cat", "pizza", "horse")
TINY = replace(
    PRESETS["attentive"],
    views=2,
    min_count=1,
    embedding_size=16,
    hidden_size=24,
    attention_size=12,
    feature_dropout=0.0,
    input_dropout=0.0,
    output_dropout=0.0,
    averaging=0.5,
    steps=30,
    batch_size=6,
    text_batch=4,
    learning_rate=1e-2,
    reward_steps=4,
    reward_batch=3,
    samples=3,
    length=8,
    every=15,
    precision="32-true",
)


def split(count: int, views: int, name: str) -> Split:
    """Photographs of one object each on the left; the detector sees it, the features do not tell."""
    objects = [OBJECTS[number % len(OBJECTS)] for number in range(count)]
    captions = [(f"a {each} on the left .", f"the {each} sits", f"a {each} here", f"one {each}") for each in objects]
    photos = tuple(Photo(f"{name}{n}.jpg", name, Path("none"), each) for n, each in enumerate(captions))
    grids = np.full((count, views, 81, 352), 0.1, np.float16)
    grids[:, 1::2] = 0.2  # mirrored
    detections = tuple([Detection(each, 0.9, BOX)] for each in objects)
    collections = tuple(int(number >= count // 2) for number in range(count))
    return Split(photos, collections, grids, np.zeros((count, views, 1280), np.float16), detections)


@pytest.fixture(scope="module")
def corpus() -> AttentiveCorpus:
    splits = {"train": split(12, 2, "train"), "val": split(8, 1, "val")}
    sentences = tuple(f"a {each} runs far away" for each in OBJECTS) * 3
    vocabulary = count_vocabulary([*(c for group in splits["train"].captions for c in group), *sentences], 1)
    unused: Any = object()
    encoders = Encoders(fx.GraphModule({}, fx.Graph()), unused, Path("cnn"), Path("detector"), "0")
    sources = (Source("one", Path("one"), "none"), Source("two", Path("two"), "none"))
    return AttentiveCorpus(sources, (Path("text"),), sentences, vocabulary, encoders, splits, {}, {"captions": "1"})


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "score", lambda captions, references: score(captions, references, java=None))


def test_the_tags_are_learnt(corpus: AttentiveCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert train(replace(TINY, steps=150, reward_steps=0, untagged=0.0, every=75), corpus, run)
    result = run.read("result.json")
    assert result["valid_cider"] > 100
    assert result["valid_cider_one"] == pytest.approx(result["valid_cider_two"], rel=0.5)
    assert result["valid_untagged_cider_one"] < 0.5 * result["valid_cider_one"]  # nothing else says which object


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    corpus: AttentiveCorpus, tmp_path: Path, after_step: AfterStep
) -> None:
    whole = Run(tmp_path / "whole")
    assert train(TINY, corpus, whole)
    cut = Run(tmp_path / "cut")
    for stop in (0.0, 0.0, math.inf):  # one step, another one, the rest
        done = train(TINY, corpus, cut, resume=True, minutes=stop)
    assert done
    expected, found = (torch.load(run.checkpoint) for run in (whole, cut))
    assert found["progress"] == expected["progress"]
    for name, weight in expected["average"].items():
        assert torch.equal(found["average"][name], weight), name
    assert [each["valid_cider"] for each in cut.metrics()] == [each["valid_cider"] for each in whole.metrics()]


def test_both_phases_are_recorded(corpus: AttentiveCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(TINY, corpus, run)
    recorded = run.metrics()
    assert [each["epoch"] for each in recorded] == [15, 30, 34]
    assert ["train_cost" in each for each in recorded] == [True, True, False]
    assert 0 < recorded[-1]["train_reward"] <= 10 + TINY.tag_reward
    assert recorded[0]["valid_cider"] == pytest.approx(
        (recorded[0]["valid_cider_one"] + recorded[0]["valid_cider_two"]) / 2
    )


def test_captions_that_say_left_or_right_are_of_no_mirrored_view(corpus: AttentiveCorpus) -> None:
    known = TrainingSet.of(corpus, TINY)
    left = corpus.vocabulary.ids(["left"])[0]
    mirrored = {True: 0, False: 0}
    for step in range(30):
        scene, captions = known.caption_batch(step, np.random.default_rng(step))
        assert scene.grid is not None
        for grid, caption in zip(scene.grid, captions, strict=True):
            mirrored[left in caption] += int(grid[0, 0] > 0.15)
    assert mirrored[True] == 0
    assert mirrored[False] > 10


def test_an_epoch_has_each_caption_once(corpus: AttentiveCorpus) -> None:
    known = TrainingSet.of(corpus, TINY)
    first = np.concatenate([known._batch("captions", known.lengths, 6, step) for step in range(8)])  # noqa: SLF001
    second = np.concatenate([known._batch("captions", known.lengths, 6, step) for step in range(8, 16)])  # noqa: SLF001
    assert sorted(first) == sorted(second) == list(range(48))
    assert first.tolist() != second.tolist()


def test_naming_a_sure_tag_is_rewarded(corpus: AttentiveCorpus) -> None:
    known = TrainingSet.of(corpus, replace(TINY, tag_reward=0.5))
    caption = [*corpus.vocabulary.ids(["dog"]), corpus.vocabulary.end]
    assert known.score(0, caption) == pytest.approx(known.reward(0, caption) + 0.5)
    assert known.score(1, caption) == known.reward(1, caption)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_every_cell_can_be_built(corpus: AttentiveCorpus, cell: Any) -> None:
    build(replace(PRESETS["attentive"], cell=cell), corpus)


def test_fields_out_of_range_are_named() -> None:
    with pytest.raises(SettingsError, match=r"untagged.*\n?.*"):
        AttentiveConfig(untagged=1.0)
    with pytest.raises(SettingsError, match="samples"):
        AttentiveConfig(samples=1)


@pytest.mark.parametrize(("ranks", "sizes"), [(1, [2, 5, 5]), (2, [2, 5, 5]), (3, [5, 5, 5])])
def test_every_rank_has_examples_of_every_batch(corpus: AttentiveCorpus, ranks: int, sizes: list[int]) -> None:
    assert len(corpus.sentences) == 12
    known = TrainingSet.of(corpus, replace(TINY, text_batch=5), ranks)
    random = np.random.default_rng(1)
    assert sorted(len(known.sentence_batch(step, random)[1]) for step in range(3)) == sizes
