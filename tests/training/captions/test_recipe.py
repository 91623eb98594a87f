"""The captions recipe: presets, what an epoch covers, both phases, exact resume, sampling and beam search."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from app.errors import SettingsError
from app.models.captioner import Captioner
from app.runtime import beam_search as served
from app.text import Vocabulary
from training.captions import objective, recipe, validation
from training.captions.config import PRESETS, CaptionsConfig
from training.captions.data import CaptionCorpus, Source, Split
from training.captions.dataset import IGNORED, TrainingSet
from training.captions.decoding import beam_search, sample, seen
from training.captions.recipe import build, train
from training.captions.scores import score
from training.captions.vocabulary import count_vocabulary, words
from training.run import Run, RunError

AfterStep = Callable[[Callable[[dict[str, Any]], None]], None]
SCENES = [
    f"{subject} {verb} {adverb}"
    for subject in ("a dog", "two men")
    for verb in ("runs", "sits")
    for adverb in ("here", "far away")
]
TINY = CaptionsConfig(
    views=2,
    min_count=1,
    embedding_size=16,
    hidden_size=16,
    input_dropout=0.1,
    output_dropout=0.1,
    batch_size=4,
    epochs=2,
    reward_batch=3,
    samples=3,
    length=6,
    precision="32-true",
)
BOTH = replace(TINY, cell="gru", inject="init", averaging=0.9, reward_epochs=2)  # both phases


def split(count: int, views: int, name: str) -> Split:
    """Photographs whose features tell the scene; each has two captions, the second one without its last word."""
    scenes = [number % len(SCENES) for number in range(count)]
    features = np.zeros((count, views, 10), np.float32)
    features[np.arange(count), :, scenes] = 3.0
    captions = tuple((f"{SCENES[scene]} .", " ".join(SCENES[scene].split()[:-1])) for scene in scenes)
    return Split(tuple(f"{name}{number}.jpg" for number in range(count)), captions, features)


@pytest.fixture(scope="module")
def photographs() -> CaptionCorpus:
    splits = {"train": split(17, 2, "train"), "val": split(8, 1, "val")}
    vocabulary = count_vocabulary((caption for group in splits["train"].captions for caption in group), 1)
    checksums = {"captions": "1", "train": "2"}
    return CaptionCorpus(Source("scenes", Path("scenes"), "none"), vocabulary, "none", splits, {}, checksums)


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR takes most of a minute to start."""
    monkeypatch.setattr(validation, "score", partial(score, java=None))


def checkpoint(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run.checkpoint)
    return content


# presets


def test_the_chapter_preset_is_the_chapters_formula_and_plain_maximum_likelihood() -> None:
    chapter = PRESETS["chapter"]
    assert (chapter.inject, chapter.cell) == ("chapter", "lstm")
    assert (chapter.label_smoothing, chapter.averaging, chapter.reward_epochs) == (0, 0, 0)


def test_the_best_preset_learns_from_its_score() -> None:
    assert PRESETS["best"].reward_epochs > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_built(preset: str, photographs: CaptionCorpus) -> None:
    model = build(PRESETS[preset], photographs)
    assert model(torch.rand(2, 10), torch.tensor([[0, 1], [0, 2]])).shape == (2, 2, len(photographs.vocabulary))


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        *((field, [0, -1], 1) for field in ("views", "min_count", "embedding_size", "hidden_size", "batch_size")),
        *((field, [0, -1], 1) for field in ("epochs", "reward_batch", "length", "beam_width")),
        ("samples", [1, 0], 2),
        *((f"{kind}_dropout", [-0.1, 1.0, math.nan], 0.99) for kind in ("feature", "input", "output")),
        ("label_smoothing", [-0.1, 1.0, math.nan], 0.0),
        ("averaging", [-0.1, 1.0, math.nan], 0.0),
        *(
            (field, [0.0, -1.0, math.inf, math.nan], 1e-9)
            for field in ("learning_rate", "clip", "temperature", "reward_rate")
        ),
        *((field, [-0.1, math.inf, math.nan], 0.0) for field in ("weight_decay", "length_penalty")),
        ("reward_epochs", [-1], 0),
        ("seed", [-1, 2**41], 2**40),
    ],
)
def test_a_field_out_of_its_range_is_rejected_by_name(field: str, wrong: list[Any], right: Any) -> None:
    for value in wrong:
        with pytest.raises(SettingsError, match=rf"^{field}: expected .+, found {re.escape(str(value))}$"):
            replace(TINY, **{field: value})
    assert getattr(replace(TINY, **{field: right}), field) == right


def test_a_tied_layer_of_two_sizes_is_rejected(photographs: CaptionCorpus) -> None:
    with pytest.raises(SettingsError, match=r"^tied: expected hidden_size"):
        build(replace(TINY, tied=True, hidden_size=8), photographs)


# what an epoch covers


def test_captions_are_delimited_and_their_padding_is_ignored(photographs: CaptionCorpus) -> None:
    training_set = TrainingSet.of(photographs, TINY)
    vocabulary, row = photographs.vocabulary, training_set.captions[0].tolist()
    said = vocabulary.ids(words(photographs.splits["train"].captions[0][0]))
    assert row == [vocabulary.end, *said, vocabulary.end] + [IGNORED] * (TINY.length - len(said))
    assert training_set.lengths[0] == len(said) + 1
    assert training_set.photographs.tolist() == [number for number in range(17) for _ in range(2)]


def test_a_caption_that_is_too_long_loses_its_end(photographs: CaptionCorpus) -> None:
    training_set = TrainingSet.of(photographs, replace(TINY, length=2))
    assert training_set.captions.shape == (34, 4)
    assert (training_set.captions[:, 1:3] > photographs.vocabulary.unknown).all()
    assert (training_set.lengths <= 3).all()


@pytest.mark.parametrize("size", [1, 4, 34, 50])
def test_an_epoch_covers_every_caption_once_in_an_order_of_its_own(size: int, photographs: CaptionCorpus) -> None:
    training_set, config = TrainingSet.of(photographs, TINY), replace(TINY, batch_size=size)
    first, again, second = (training_set.caption_batches(config, epoch) for epoch in (0, 0, 1))
    assert sorted(np.concatenate(first).tolist()) == list(range(34))
    assert all(len(batch) <= size for batch in first)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]


def test_captions_of_a_batch_are_about_equally_long(photographs: CaptionCorpus) -> None:
    training_set = TrainingSet.of(photographs, TINY)
    spread = [np.ptp(training_set.lengths[batch]) for batch in training_set.caption_batches(TINY, 0)]
    assert np.mean(spread) < 1 < np.ptp(training_set.lengths)


def test_a_reward_epoch_covers_every_photograph_once(photographs: CaptionCorpus) -> None:
    batches = TrainingSet.of(photographs, TINY).photograph_batches(TINY, 3)
    assert sorted(np.concatenate(batches).tolist()) == list(range(17))
    assert max(map(len, batches)) == 3


def test_a_photograph_is_seen_in_all_its_views(photographs: CaptionCorpus) -> None:
    features = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    training_set = replace(TrainingSet.of(photographs, TINY), features=torch.from_numpy(features))
    seen = training_set.sample_features(torch.tensor([1] * 50)).flatten().tolist()
    assert set(seen) == {2.0, 3.0}


# learning


def test_a_captioner_learns_to_caption(photographs: CaptionCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert train(replace(TINY, epochs=30, learning_rate=1e-2), photographs, run)
    metrics = run.metrics()
    assert metrics[-1]["train_cost"] < metrics[0]["train_cost"] / 3
    assert run.read("result.json")["valid_distinct"] == len(SCENES)
    assert run.read("result.json")["valid_cider"] > 300


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_every_cell_can_be_trained_with_the_chapters_formula(
    cell: Any, photographs: CaptionCorpus, tmp_path: Path
) -> None:
    assert train(replace(TINY, cell=cell, epochs=1), photographs, Run(tmp_path))


def test_rewards_raise_the_scores_of_captions(photographs: CaptionCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(replace(BOTH, epochs=2, reward_epochs=12, reward_rate=1e-2, samples=8), photographs, run)
    metrics = run.metrics()
    assert ["train_reward" in entry for entry in metrics] == [False] * 2 + [True] * 12
    assert metrics[-1]["valid_cider"] > 2 * metrics[1]["valid_cider"] > 0
    assert metrics[-1]["train_reward"] > metrics[2]["train_reward"]


def test_the_reward_follows_the_gradient_of_the_expected_score(
    photographs: CaptionCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of plain gradient descent, written out sample by sample."""
    config = replace(BOTH, epochs=1, reward_epochs=1, reward_batch=17, temperature=0.5, clip=1e9, averaging=0.0)
    config = replace(config, input_dropout=0.0, output_dropout=0.0)
    drawn: list[Tensor] = []

    def watched(*arguments: Any) -> tuple[Tensor, Tensor]:
        captions, likelihoods = sample(*arguments)
        drawn.append(captions)
        return captions, likelihoods

    monkeypatch.setattr(objective, "sample", watched)
    gradients: dict[str, Tensor] = {}
    backward = Fabric.backward

    def noted(fabric: Fabric, loss: Tensor, model: Any = None) -> None:
        backward(fabric, loss)
        if drawn:
            for name, parameter in models[0].named_parameters():
                assert parameter.grad is not None
                gradients[name] = parameter.grad.clone()

    models: list[Captioner] = []

    def built(config: CaptionsConfig, corpus: CaptionCorpus) -> Captioner:
        models.append(build(config, corpus))
        return models[-1]

    monkeypatch.setattr(recipe, "build", built)
    monkeypatch.setattr(Fabric, "backward", noted)
    run = Run(tmp_path)
    train(config, photographs, run)
    (samples,) = drawn

    model = build(config, photographs).eval()
    model.load_state_dict(before_reward(config, photographs, tmp_path / "first"))
    model.sharpen(0.5)
    training_set = TrainingSet.of(photographs, config)
    (batch,) = training_set.photograph_batches(config, 1)
    total, count = torch.zeros(()), 0
    said = [[token for token in row[1:] if token != IGNORED] for row in samples.tolist()]
    for place, photograph in enumerate(batch.tolist()):
        group = said[3 * place : 3 * place + 3]
        rewards = [training_set.reward(photograph, caption) for caption in group]
        features = training_set.features[photograph, :1]  # both views are the same
        for number, caption in enumerate(group):
            baseline = (sum(rewards) - rewards[number]) / 2  # the other samples' mean
            inputs = torch.tensor([[photographs.vocabulary.end, *caption[:-1]]])
            logits = model(features, inputs)[0]
            logits[:, photographs.vocabulary.unknown] = -math.inf
            logits[0, photographs.vocabulary.end] = -math.inf
            log_probabilities = logits.log_softmax(-1)
            likelihood = log_probabilities.gather(1, torch.tensor(caption)[:, None]).sum()
            total = total - (rewards[number] - baseline) * likelihood
            count += len(caption)
    expected = torch.autograd.grad(total / count, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected)


def before_reward(config: CaptionsConfig, corpus: CaptionCorpus, folder: Path) -> dict[str, Tensor]:
    """The weights that the reward phase starts from."""
    run = Run(folder)
    train(replace(config, reward_epochs=0), corpus, run)
    weights: dict[str, Tensor] = checkpoint(run)["best"]["weights"]
    return weights


# bookkeeping


def test_the_rate_rises_and_falls_in_each_phase(
    photographs: CaptionCorpus, tmp_path: Path, after_step: AfterStep
) -> None:
    steps: list[float] = []
    after_step(lambda state: steps.append(state["optimiser"].param_groups[0]["lr"]))
    train(replace(BOTH, epochs=4, reward_epochs=4), photographs, Run(tmp_path))
    captions, rewards = steps[:36], steps[36:]
    assert len(rewards) == 4 * 6
    for rates, peak in ((captions, BOTH.learning_rate), (rewards, BOTH.reward_rate)):
        highest = rates.index(max(rates))
        assert 0.9 * peak < rates[highest] <= peak
        assert rates[: highest + 1] == sorted(rates[: highest + 1])
        assert rates[highest:] == sorted(rates[highest:], reverse=True)
        assert rates[-1] < 0.1 * peak


def test_the_best_epochs_averaged_weights_are_kept(photographs: CaptionCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(replace(BOTH, epochs=6), photographs, run)
    best, metrics = checkpoint(run)["best"], run.metrics()
    assert best["cider"] == max(entry["valid_cider"] for entry in metrics)
    assert metrics[best["epoch"] - 1]["valid_cider"] == best["cider"]
    assert run.read("result.json")["epoch"] == best["epoch"]


def test_without_averaging_the_mean_is_the_model(photographs: CaptionCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(TINY, photographs, run)
    content = checkpoint(run)
    for name, weight in content["model"].items():
        torch.testing.assert_close(content["average"][name], weight, rtol=0, atol=1e-7)


def test_averaged_weights_lag_behind_the_model(photographs: CaptionCorpus, tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(replace(TINY, averaging=0.9), photographs, run)
    content = checkpoint(run)
    assert any(not torch.allclose(content["average"][name], weight) for name, weight in content["model"].items())


def test_a_result_says_how_words_were_parted_and_that_meteor_is_missing(
    photographs: CaptionCorpus, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    train(TINY, photographs, run)
    result = run.read("result.json")
    assert (result["valid_tokeniser"], result["valid_meteor"]) == ("own", None)
    assert result["length_penalty"] in validation.LENGTH_PENALTIES


def test_corrupt_photographs_are_reported(
    photographs: CaptionCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(TINY, epochs=1), replace(photographs, corrupt={"bad.jpg": "truncated"}), Run(tmp_path))
    assert "bad.jpg skipped: truncated" in capsys.readouterr().out
    assert json.loads((tmp_path / "source.json").read_text())["corrupt"] == {"bad.jpg": "truncated"}


def test_many_corrupt_photographs_are_counted(
    photographs: CaptionCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt = {f"{number}.jpg": "truncated" for number in range(1000)}
    train(replace(TINY, epochs=1), replace(photographs, corrupt=corrupt), Run(tmp_path))
    output = capsys.readouterr().out
    assert output.count(" skipped: truncated") == 10
    assert f"1000 skipped in all: see {tmp_path}/source.json" in output


# resuming


def test_a_run_that_is_killed_after_every_step_ends_with_the_weights_of_an_undisturbed_one(
    photographs: CaptionCorpus, tmp_path: Path
) -> None:
    whole, pieces = Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    train(BOTH, photographs, whole)
    stops = 0
    while not train(BOTH, photographs, pieces, resume=True, minutes=0):
        stops += 1
    assert stops == 2 * 9 + 2 * 6
    expected, found = checkpoint(whole), checkpoint(pieces)
    for part in ("model", "average"):
        for name, weight in expected[part].items():
            torch.testing.assert_close(found[part][name], weight, rtol=0, atol=0)
    for name, weight in expected["best"]["weights"].items():
        torch.testing.assert_close(found["best"]["weights"][name], weight, rtol=0, atol=0)
    assert [m["valid_cider"] for m in pieces.metrics()] == [m["valid_cider"] for m in whole.metrics()]
    assert pieces.read("result.json") == whole.read("result.json")


def test_a_run_is_resumed_with_its_own_configuration_and_data_alone(photographs: CaptionCorpus, tmp_path: Path) -> None:
    train(TINY, photographs, Run(tmp_path), minutes=0)
    with pytest.raises(RunError, match="seed is 2, was 1"):
        train(replace(TINY, seed=2), photographs, Run(tmp_path), resume=True)
    with pytest.raises(RunError, match="sha256 of train is 3, was 2"):
        train(TINY, replace(photographs, sha256={"captions": "1", "train": "3"}), Run(tmp_path), resume=True)
    with pytest.raises(RunError, match="holds a run already"):
        train(TINY, photographs, Run(tmp_path))


# sampling and searching


@pytest.fixture
def talker(photographs: CaptionCorpus) -> Captioner:
    """A model that is far from sure of anything."""
    model = build(replace(TINY, inject="init", cell="gru"), photographs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
        model.output.bias.zero_()[photographs.vocabulary.end] = -2  # not to say the same of all, nor to stop at once
    return model


def searched(
    model: Captioner, features: Tensor, vocabulary: Vocabulary, width: int, alpha: float
) -> tuple[list[int], float]:
    """Captions by the served beam search, one photograph and one state at a time."""

    def expansion(state: Tensor, token: int) -> served.Expansion[Tensor]:
        said, after = model.step(torch.tensor([token]), state)
        said[0, vocabulary.unknown] = -math.inf
        return served.Expansion(said[0].numpy(), after)

    with torch.inference_mode():
        start = expansion(model.begin(features[None]), vocabulary.end)
        search = served.beam_search(start, width=width, length=6, end=vocabulary.end, length_penalty=alpha)
        try:
            live = next(search)
            while True:
                live = search.send([expansion(each.state, each.tokens[-1]) for each in live])
        except StopIteration as stop:
            best = stop.value[0]
            return list(best.tokens), best.log_probability


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.1])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_beam_search_is_the_served_one(width: int, alpha: float, talker: Captioner, photographs: CaptionCorpus) -> None:
    features = torch.rand(20, 10) * 4
    found = beam_search(seen(talker, features), photographs.vocabulary, width, 6, length_penalty=alpha)
    for row, caption in zip(features, found, strict=True):
        tokens, log_probability = searched(talker, row, photographs.vocabulary, width, alpha)
        assert caption.tokens == tokens
        assert caption.log_probability == pytest.approx(log_probability, abs=1e-4)
    assert len({tuple(caption.tokens) for caption in found}) > 3


def test_a_beam_of_one_is_greedy(talker: Captioner, photographs: CaptionCorpus) -> None:
    vocabulary, features = photographs.vocabulary, torch.rand(1, 10)
    state, token, expected = talker.begin(features), vocabulary.end, []
    for place in range(6):
        said, state = talker.step(torch.tensor([token]), state)
        said[0, vocabulary.unknown] = -math.inf
        if place == 0:
            said[0, vocabulary.end] = -math.inf
        token = int(said.argmax())
        if token == vocabulary.end:
            break
        expected.append(token)
    (found,) = beam_search(seen(talker, features), vocabulary, 1, 6, length_penalty=0.7)
    assert found.tokens == expected


def test_a_caption_does_not_depend_on_its_neighbours(talker: Captioner, photographs: CaptionCorpus) -> None:
    features = torch.rand(300, 10) * 4  # more than are searched at a time
    together = beam_search(seen(talker, features), photographs.vocabulary, 3, 6, length_penalty=0.7)
    for place in (0, 255, 256, 299):
        (alone,) = beam_search(
            seen(talker, features[place : place + 1]), photographs.vocabulary, 3, 6, length_penalty=0.7
        )
        assert alone.tokens == together[place].tokens


def test_samples_are_drawn_as_often_as_the_model_says(talker: Captioner, photographs: CaptionCorpus) -> None:
    vocabulary, features = photographs.vocabulary, torch.rand(1, 10)
    expected, _ = talker.step(torch.tensor([vocabulary.end]), talker.begin(features))
    expected = expected.detach()[0].exp()
    expected[[vocabulary.end, vocabulary.unknown]] = 0
    captions, likelihoods = sample(seen(talker, features.expand(20_000, -1)), vocabulary, 1)
    found = torch.bincount(captions[:, 1], minlength=len(vocabulary)) / len(captions)
    torch.testing.assert_close(found, expected / expected.sum(), rtol=0, atol=0.02)
    torch.testing.assert_close(likelihoods.exp(), (expected / expected.sum())[captions[:, 1]])


def test_nothing_is_sampled_after_the_end_and_never_the_unknown_word(
    talker: Captioner, photographs: CaptionCorpus
) -> None:
    samples, _ = sample(seen(talker, torch.rand(500, 10)), photographs.vocabulary, 6)
    assert samples.shape == (500, 8)
    kinds = Counter(map(kind_of_ending, samples[:, 1:].tolist(), [photographs.vocabulary.end] * 500))
    assert set(kinds) == {"ended", "cut"}
    assert not (samples == photographs.vocabulary.unknown).any()
    assert not (samples[:, 1] == photographs.vocabulary.end).any()


def kind_of_ending(caption: Sequence[int], end: int) -> str:
    if end not in caption:
        return "cut" if IGNORED not in caption[:-1] else "broken"
    rest = caption[list(caption).index(end) + 1 :]
    return "ended" if set(rest) <= {IGNORED} else "broken"


def test_every_step_of_both_phases_calls_the_module_that_fabric_wraps(
    photographs: CaptionCorpus, tmp_path: Path, wrapped_calls: list[str]
) -> None:
    run = Run(tmp_path)
    train(BOTH, photographs, run)
    assert wrapped_calls == ["Objective"] * checkpoint(run)["progress"]["step"]
