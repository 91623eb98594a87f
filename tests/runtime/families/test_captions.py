"""The captions predictor: batch invariance, beam search, streaming and its bundles."""

import base64
import hashlib
import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import fx, nn

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, InvalidField, Malformed, TooLarge
from app.images import decoded, photo
from app.models.captioner import Captioner
from app.runtime.families import captions as served
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.families.image_decoders import VectorDecoder
from app.runtime.loading import load_predictor
from app.runtime.predictor import Resources, answer_all
from tests.runtime.families.captioners import captioner_manifest, described, photograph
from training.captions.export import export_captions
from training.publishing import PRECISIONS, probe

WORDS = ["<eos>", "<unk>", *"a the dog man boy ball runs jumps sees grass water red big in on 's".split()]
END, UNKNOWN = 0, 1
LENGTH = 8


PHOTOGRAPHS = [photograph(seed, (30, 40)) for seed in range(12)]


class Colours(nn.Module):
    """A fake CNN: the mean colours of a 4 by 4 grid."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Conv2d(3, 24, 56, 56)
        self.relu = nn.ReLU()

    def forward(self, photographs: torch.Tensor) -> torch.Tensor:
        """(B, 3, 224, 224) -> (B, 24)."""
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.relu(self.places(photographs)), 1), 1)


@pytest.fixture(scope="module")
def modules() -> tuple[Captioner, fx.GraphModule]:
    """A captioner whose captions differ and end, and a network that sees coarse colours."""
    torch.manual_seed(1)
    network = Colours()
    model = Captioner(
        vocabulary_size=len(WORDS), feature_size=24, embedding_size=20, hidden_size=20, cell="gru", inject="init"
    )
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "bias" in name else 0.9)
    nn.init.constant_(model.output.bias[END : UNKNOWN + 1], 1.5)  # what is never said would be said often
    return model.half().float().eval(), fx.symbolic_trace(network.half().float().eval())


@pytest.fixture(scope="module")
def store(modules: tuple[Captioner, fx.GraphModule], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model `tiny`, read only."""
    vocabulary = "\n".join(WORDS).encode()
    contents: dict[str, bytes | Path] = {"vocabulary.txt": vocabulary, **export_captions(*modules)}
    manifest = captioner_manifest(vocabulary, LENGTH)
    draft = bundles.read(bundles.publish(tmp_path_factory.mktemp("draft"), manifest, contents))
    opened = {p: CaptionsPredictor.open(draft, p, Resources()) for p in PRECISIONS}
    payload = {"image": base64.b64encode(PHOTOGRAPHS[0]).decode(), "alternatives": 2}
    contents["probe.json"] = json.dumps(probe(opened, payload)).encode()
    folder = tmp_path_factory.mktemp("store")
    bundles.publish(folder, manifest, contents)
    return folder


@pytest.fixture(scope="module")
def bundle(store: Path) -> Bundle:
    return bundles.read(store / "tiny" / "1")


@pytest.fixture(params=PRECISIONS)
def predictor(request: pytest.FixtureRequest, bundle: Bundle) -> CaptionsPredictor:
    return CaptionsPredictor.open(bundle, request.param, Resources())


@pytest.fixture(scope="module")
def int8(bundle: Bundle) -> CaptionsPredictor:
    return CaptionsPredictor.open(bundle, "int8", Resources())


def said(answer: Description) -> list[tuple[str, float]]:
    """The caption and the alternatives, with their log-probabilities."""
    return [(answer.text, answer.log_probability), *((o.caption, o.log_probability) for o in answer.alternatives)]


def log_probabilities(predictor: CaptionsPredictor, content: bytes, tokens: list[int]) -> list[float]:
    """Return the log-probability of each of `tokens` after those before it."""
    assert isinstance(predictor.decoder, VectorDecoder)
    state = predictor.decoder.begin(predictor.decoder.features(photo(decoded(content))[None]))
    values = []
    for before, token in itertools.pairwise([END, *tokens]):
        step = predictor.decoder.decode([before], state)
        state = step.states
        values.append(float(step.log_probabilities[0, token]))
    return values


def greedy(predictor: CaptionsPredictor, content: bytes) -> list[int]:
    """The likeliest word after each, up to LENGTH of them; the last is END if it came."""
    assert isinstance(predictor.decoder, VectorDecoder)
    state = predictor.decoder.begin(predictor.decoder.features(photo(decoded(content))[None]))
    tokens: list[int] = []
    while len(tokens) < LENGTH and END not in tokens:
        step = predictor.decoder.decode(tokens[-1:] or [END], state)
        state = step.states
        never = [UNKNOWN] if tokens else [UNKNOWN, END]
        step.log_probabilities[0, never] = -np.inf
        tokens.append(int(step.log_probabilities[0].argmax()))
    return tokens


def words(tokens: list[int]) -> str:
    return " ".join(WORDS[token] for token in tokens if token != END).replace(" 's", "'s")


def ids(caption: str) -> list[int]:
    """A caption's words, and the end if it came before LENGTH words."""
    found = [WORDS.index(word) for word in caption.replace("'s", " 's").split()]
    return found if len(found) == LENGTH else [*found, END]


# what is said


def test_a_beam_of_1_is_greedy(predictor: CaptionsPredictor) -> None:
    found = described(predictor, *(Describe(content, beam=1) for content in PHOTOGRAPHS))
    assert [answer.text for answer in found] == [words(greedy(predictor, content)) for content in PHOTOGRAPHS]
    assert len({answer.text for answer in found}) > 3  # the photographs do differ


def test_captions_are_of_known_words_and_end_in_time(int8: CaptionsPredictor) -> None:
    for answer in described(int8, *(Describe(content, alternatives=9) for content in PHOTOGRAPHS)):
        for caption, _ in said(answer):
            assert 1 <= len(caption.replace("'s", " 's").split()) <= LENGTH
            assert "<" not in caption


def test_a_log_probability_is_the_sum_over_words_and_end_whatever_ranks_them(predictor: CaptionsPredictor) -> None:
    ended = 0
    for content in PHOTOGRAPHS:
        (answer,) = described(predictor, Describe(content, alternatives=4))
        for caption, log_probability in said(answer):
            tokens = ids(caption)
            ended += END in tokens
            assert log_probability == pytest.approx(sum(log_probabilities(predictor, content, tokens)), abs=1e-4)
    assert 0 < ended < 5 * len(PHOTOGRAPHS)  # there are such and such


def test_captions_are_ranked_by_log_probability_over_length(int8: CaptionsPredictor) -> None:
    sums, ranked = list[bool](), list[bool]()
    for answer in described(int8, *(Describe(content, beam=6, alternatives=5) for content in PHOTOGRAPHS)):
        values = [(log_probability, len(ids(caption))) for caption, log_probability in said(answer)]
        assert len(values) == 6
        ranks = [value / count**0.7 for value, count in values]
        ranked.append(ranks == sorted(ranks, reverse=True))
        sums.append(values == sorted(values, reverse=True))
    assert all(ranked)
    assert not all(sums)


@pytest.mark.parametrize("beam", [1, 3, 10])
def test_a_caption_does_not_depend_on_the_alternatives(beam: int, int8: CaptionsPredictor) -> None:
    for content in PHOTOGRAPHS:
        few, more, most = described(int8, *(Describe(content, beam=beam, alternatives=n) for n in (0, 2, 9)))
        assert few.alternatives == []
        assert (few.text, few.log_probability) == (more.text, more.log_probability)
        assert (few.text, few.log_probability) == (most.text, most.log_probability)
        assert len(more.alternatives) == 2
        assert len(most.alternatives) == 9
        captions = [few.text, *(other.caption for other in most.alternatives)]
        assert len(set(captions)) == 10
        if beam > 2:  # they are of the same search
            (same,) = described(int8, Describe(content, beam=beam, alternatives=beam - 1))
            assert more.alternatives == same.alternatives[:2]


# company


def test_a_caption_is_the_same_bit_for_bit_whatever_shares_its_steps(
    predictor: CaptionsPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = [Describe(content, beam=1 + i % 4, alternatives=i % 3) for i, content in enumerate(PHOTOGRAPHS)]
    alone = [described(predictor, payload)[0] for payload in payloads]
    assert _alike(described(predictor, *payloads), alone, predictor.precision)
    assert _alike(described(predictor, *payloads[::-1])[::-1], alone, predictor.precision)
    monkeypatch.setattr(served, "MAX_STEP_ROWS", 1)  # one photograph a step: they come one after the other
    assert _alike(described(predictor, *payloads), alone, predictor.precision)


def _alike(found: list[Description], expected: list[Description], precision: str) -> bool:
    """Equal; in float32 but for the last digits of the numbers, which depend on how many rows are multiplied."""
    if precision == "int8":
        return found == expected
    return all(
        replace(one, log_probability=0.0, alternatives=[]) == replace(other, log_probability=0.0, alternatives=[])
        and one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
        for one, other in zip(found, expected, strict=True)
    )


def test_a_step_has_at_most_the_maximum_of_rows(int8: CaptionsPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "MAX_STEP_ROWS", 4)
    examples = [int8.prepare(Describe(content)) for content in PHOTOGRAPHS[:5]]
    assert [example.cost for example in examples] == [1] * 5
    int8.step(examples)  # four say their first word
    assert [example.cost for example in examples] == [3, 3, 3, 3, 1]
    wanted = [example.step for example in examples]
    int8.step(examples)  # three beams go on, and there is room for the last one's first word
    gone_on = [example.step is not before for example, before in zip(examples, wanted, strict=True)]
    assert gone_on == [True, False, False, False, True]


def test_the_first_example_advances_even_above_the_maximum(
    int8: CaptionsPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "MAX_STEP_ROWS", 2)
    examples = [int8.prepare(Describe(content)) for content in PHOTOGRAPHS[:2]]
    int8.step(examples[:1])
    (before, _) = [example.step for example in examples]
    int8.step(examples)
    assert examples[0].step is not before
    assert examples[1].cost == 1


def test_photographs_may_be_prepared_side_by_side(int8: CaptionsPredictor) -> None:
    payloads = [Describe(content) for content in PHOTOGRAPHS]
    with ThreadPoolExecutor(4) as threads:
        examples = list(threads.map(int8.prepare, payloads))
    assert answer_all(int8, examples) == described(int8, *payloads)


# streaming


def words_by_step(predictor: CaptionsPredictor, content: bytes, **asked: Any) -> tuple[list[list[str]], Description]:
    """Return the words streamed in each step, and the answer."""
    example = predictor.prepare(Describe(content, **asked))
    steps = list[list[str]]()
    while True:
        (output,) = predictor.step([example])
        steps.append([*output.parts] if output else [])
        if output and output.answer:
            return steps, output.answer


def test_each_word_is_streamed_once_in_order_before_the_answer(int8: CaptionsPredictor) -> None:
    early = 0
    for content in PHOTOGRAPHS:
        for asked in ({"beam": 1}, {"beam": 3}, {"beam": 2, "alternatives": 5}):
            steps, answer = words_by_step(int8, content, **asked)
            assert " ".join(itertools.chain(*steps)).replace(" 's", "'s") == answer.text
            early += asked == {"beam": 3} and any(steps[:-1])
    assert early > 0  # not all words are streamed at the end


def test_a_beam_of_1_streams_each_word_at_once(int8: CaptionsPredictor) -> None:
    for content in PHOTOGRAPHS:
        steps, answer = words_by_step(int8, content, beam=1)
        spoken = steps if len(ids(answer.text)) == LENGTH and END not in ids(answer.text) else steps[:-1]
        assert [len(step) for step in spoken] == [1] * len(spoken)


def test_streaming_changes_no_caption(int8: CaptionsPredictor) -> None:
    for content in PHOTOGRAPHS:
        assert words_by_step(int8, content, alternatives=4)[1] == described(int8, Describe(content, alternatives=4))[0]


# what is refused


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"beam": 0}, "beam: expected 1 to 10, found 0"),
        ({"beam": 11}, "beam: expected 1 to 10, found 11"),
        ({"alternatives": -1}, "alternatives: expected 0 to 9, found -1"),
        ({"alternatives": 10}, "alternatives: expected 0 to 9, found 10"),
    ],
)
def test_a_number_out_of_its_range_is_rejected(asked: dict[str, int], message: str, int8: CaptionsPredictor) -> None:
    with pytest.raises(InvalidField, match=f"^{message}$"):
        int8.prepare(Describe(PHOTOGRAPHS[0], **asked))  # type: ignore[arg-type]  # an int is neither name nor callback


def test_an_undecodable_image_is_rejected_by_its_name(int8: CaptionsPredictor) -> None:
    with pytest.raises(Malformed, match=r"^image\.2: expected PNG"):
        int8.prepare(Describe(b"words", "image.2"))
    stream = io.BytesIO()
    Image.new("1", (5001, 5000)).save(stream, "PNG")
    with pytest.raises(TooLarge, match=r"^image\.3: expected at most 25000000 pixels"):
        int8.prepare(Describe(stream.getvalue(), "image.3"))


# the bundle


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_served_once_its_probe_is_replayed(precision: str, bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"served": precision})
    predictor = load_predictor(replace(bundle, manifest=manifest))
    assert isinstance(predictor, CaptionsPredictor)
    assert predictor.precision == precision


def test_a_probe_returns_the_caption_and_the_alternatives(int8: CaptionsPredictor) -> None:
    (answer,) = described(int8, Describe(PHOTOGRAPHS[1], beam=2, alternatives=1))
    payload = {"image": base64.b64encode(PHOTOGRAPHS[1]).decode(), "beam": 2, "alternatives": 1}
    assert int8.probe(payload) == [list(each) for each in said(answer)]
    assert len(answer.alternatives) == 1


def test_a_vocabulary_of_another_size_is_rejected(store: Path, bundle: Bundle, tmp_path: Path) -> None:
    contents: dict[str, bytes | Path] = {name: bundle.path(name) for name in bundle.manifest.files}
    words = "\n".join(WORDS[:-1]).encode()
    contents["vocabulary.txt"] = words
    sha256 = hashlib.sha256(words).hexdigest()
    manifest = bundle.manifest.model_copy(update={"vocabulary_sha256": sha256})
    changed = bundles.read(bundles.publish(tmp_path, manifest, contents))
    with pytest.raises(BundleError, match=r"vocabulary\.txt: expected 18 tokens, found 17$"):
        CaptionsPredictor.open(changed, "int8", Resources())


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"length": 10**9}, {"length": "20"}, {"length_penalty": -1.0}, {"length_penalty": None}]
)
def test_a_setting_out_of_its_bounds_is_rejected(wrong: dict[str, Any], bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"config": bundle.manifest.config | wrong})
    (name,) = wrong
    with pytest.raises(BundleError, match=rf"config: {name}: expected a number from"):
        CaptionsPredictor.open(replace(bundle, manifest=manifest), "int8", Resources())
