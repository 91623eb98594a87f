"""The predictor of attentive captioners: parity, batch invariance, tags, attention, gender, repeated phrases."""

import base64
import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, fx, nn
from torch.nn import functional as F

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError
from app.images import ENCODER_SIZE, LABELS, decoded, encoder_input, photo
from app.images.tags import KINDS, tag_slots
from app.models.attentive_captioner import AttentiveCaptioner, Scene
from app.runtime.families.captions import CaptionsPredictor, Describe
from app.runtime.families.confidence import Signs, squared
from app.runtime.families.image_decoders import AttentiveDecoder, Sight
from app.runtime.families.wording import NEUTRAL, Wording
from app.runtime.predictor import Resources
from tests.detectors import detector
from tests.runtime.families.captioners import captioner_manifest, described, photograph
from training.captions.attentive.export import export_attentive
from training.publishing import PRECISIONS, probe

WORDS = ["<eos>", "<unk>", *"a man woman people person his their dog cat runs jumps sees grass blue shirt".split()]
END, UNKNOWN = 0, 1
LENGTH = 12


POOLED = np.random.default_rng(1).normal(size=(9, 1280))
PHOTOGRAPHS = [photograph(seed, (120, 90)) for seed in range(8)]


class Colours(nn.Module):
    """A fake CNN: a grid of colours and a vector of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv2d(3, 352, 28, 28)
        self.head = nn.Conv2d(352, 1280, 1)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, photographs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 260, 260) -> (B, 352, 9, 9), (B, 1280)."""
        grid = F.relu6(self.cells(self.pad(photographs)))
        return grid, torch.flatten(F.adaptive_avg_pool2d(self.head(grid), 1), 1)


@pytest.fixture(scope="module")
def modules() -> tuple[AttentiveCaptioner, fx.GraphModule]:
    torch.manual_seed(3)
    labels = [[WORDS.index(label) if label in WORDS else UNKNOWN] for label in LABELS]
    model = AttentiveCaptioner(
        vocabulary_size=len(WORDS),
        labels=labels,
        kinds=KINDS,
        embedding_size=16,
        hidden_size=20,
        attention_size=12,
        cell="gru",
    )
    for name, parameter in model.named_parameters():
        if name == "image.weight":
            nn.init.normal_(parameter, std=0.3)
        elif name != "scale":
            nn.init.normal_(parameter, std=0.5 if "bias" in name else 0.9)
    network = fx.symbolic_trace(Colours().half().float().eval())
    return model.half().float().eval().requires_grad_(False), network


@pytest.fixture(scope="module")
def bundle(modules: tuple[AttentiveCaptioner, fx.GraphModule], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    vocabulary = "\n".join(WORDS).encode()
    seen = [photo(decoded(content), ENCODER_SIZE) for content in PHOTOGRAPHS]
    exported = export_attentive(*modules, detector(), POOLED, seen)
    contents: dict[str, bytes | Path] = {"vocabulary.txt": vocabulary, **exported}
    manifest = captioner_manifest(vocabulary, LENGTH)
    return bundles.read(bundles.publish(tmp_path_factory.mktemp("store"), manifest, contents))


@pytest.fixture(params=PRECISIONS)
def predictor(request: pytest.FixtureRequest, bundle: Bundle) -> CaptionsPredictor:
    return CaptionsPredictor.open(bundle, request.param, Resources())


@pytest.fixture(scope="module")
def int8(bundle: Bundle) -> CaptionsPredictor:
    return CaptionsPredictor.open(bundle, "int8", Resources())


def test_the_graphs_compute_as_the_modules(bundle: Bundle, modules: tuple[AttentiveCaptioner, fx.GraphModule]) -> None:
    model, network = modules
    decoder = CaptionsPredictor.open(bundle, "fp32", Resources()).decoder
    assert isinstance(decoder, AttentiveDecoder)
    tokens = [END, 2, 3, 9, 11]
    for content in PHOTOGRAPHS[:3]:
        image = decoded(content)
        pixels, tags = photo(image, ENCODER_SIZE), tag_slots(decoder.detected(image))[None]
        with torch.inference_mode():
            grid, pooled = network(torch.from_numpy(encoder_input(pixels[None])))
            seen = Scene(torch.from_numpy(tags), grid.flatten(2).transpose(1, 2), pooled)
            expected = model(seen, torch.tensor([tokens])).log_softmax(-1)[0].numpy()
            state_of_torch, memory_of_torch = model.begin(seen)
            _, _, attention = model.step(torch.tensor([END]), state_of_torch, memory_of_torch)
        state, distance, *memory = decoder.begin(*decoder.encoded(pixels), tags)
        off = (pooled[0].numpy() - POOLED.mean(0)) / (POOLED.std(0) + 1e-2)
        assert distance == pytest.approx(np.sqrt(np.mean(off**2)), rel=1e-3)
        sight = Sight(state, tuple(memory))
        for position, token in enumerate(tokens):
            output = decoder.decode([token], state, [sight], [0])
            state = output.states
            assert output.log_probabilities[0] == pytest.approx(expected[position], abs=2e-3)
            if not position:
                assert output.attention[0] == pytest.approx(attention[0].numpy(), abs=1e-4)


def test_a_caption_is_the_same_bit_for_bit_whatever_shares_its_steps(predictor: CaptionsPredictor) -> None:
    payloads = [
        Describe(content, beam=1 + i % 4, alternatives=i % 3, tags=i % 3 > 0, attention=i % 2 > 0)
        for i, content in enumerate(PHOTOGRAPHS)
    ]
    alone = [described(predictor, payload)[0] for payload in payloads]
    for together in (described(predictor, *payloads), described(predictor, *payloads[::-1])[::-1]):
        if predictor.precision == "int8":
            assert together == alone
        assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.text for answer in alone}) > 3


def test_tags_are_in_pixels_of_the_upright_image_and_change_the_answer(int8: CaptionsPredictor) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the upright image is as wide as the stored one is high
    Image.new("RGB", (800, 1600), "white").save(turned, "JPEG", exif=exif)
    (answer,) = described(int8, Describe(turned.getvalue()))
    dog, cat = answer.tags
    assert (dog.label, cat.label) == ("dog", "cat")
    assert dog.score == pytest.approx(1.0, abs=0.3)
    left, top, width, height = dog.box  # 2.7 cells of 32 pixels, in a letterbox of 320 for 1,600
    assert width == pytest.approx(2.718 * 32 * 1600 / 320, abs=2)
    assert left == pytest.approx((5 * 32 - 2.718 * 16) * 1600 / 320, abs=2)
    assert 0 <= top < top + height <= 800
    with_tags, without = (described(int8, *(Describe(c, tags=tags) for c in PHOTOGRAPHS)) for tags in (True, False))
    assert all(not answer.tags for answer in without)
    assert [a.log_probability for a in with_tags] != [a.log_probability for a in without]


def test_attention_has_a_look_for_each_word(int8: CaptionsPredictor) -> None:
    plain, looked = (described(int8, Describe(PHOTOGRAPHS[0], attention=asked))[0] for asked in (False, True))
    assert plain.words is None
    assert looked.words is not None
    assert replace(looked, words=None) == plain
    assert " ".join(word.text for word in looked.words) == plain.text
    for word in looked.words:
        assert np.shape(word.weights) == (9, 9)
        assert np.min(word.weights) >= 0
        assert 0 < word.language + np.sum(word.weights) <= 1 + 1e-5  # the rest looks at tags
    assert len({str(word.weights) for word in looked.words}) > 1


def test_neutral_captions_guess_no_gender(int8: CaptionsPredictor) -> None:
    answers = described(int8, *(Describe(content, alternatives=5) for content in PHOTOGRAPHS))
    neutral = described(int8, *(Describe(content, alternatives=5, people="neutral") for content in PHOTOGRAPHS))
    captions = [[answer.text, *(other.caption for other in answer.alternatives)] for answer in (*answers, *neutral)]
    gendered = [any(word in NEUTRAL for caption in group for word in caption.split()) for group in captions]
    assert any(gendered[: len(answers)])
    assert not any(gendered[len(answers) :])


def test_a_neutral_word_takes_the_probability_of_its_gendered_ones() -> None:
    wording = Wording(WORDS)
    shares = np.full(len(WORDS), 1 / len(WORDS), np.float32)
    found = np.exp(wording.neutral(np.log(shares)))
    assert found.sum() == pytest.approx(1)
    assert found[WORDS.index("person")] == pytest.approx(3 / len(WORDS))
    assert found[WORDS.index("their")] == pytest.approx(2 / len(WORDS))
    assert found[WORDS.index("man")] == 0


def test_no_pair_of_content_words_comes_twice() -> None:
    wording = Wording(WORDS)

    def tokens(text: str) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    assert wording.repeating(tokens("a man his blue shirt sees a blue")) == tokens("shirt")
    assert wording.repeating(tokens("a man sees a")) == []
    assert wording.repeating(tokens("blue shirt sees blue dog sees blue")) == tokens("shirt dog")
    assert wording.repeating([]) == []


@pytest.mark.parametrize(
    ("caption", "barred"),
    [("a couch and", "couch"), ("a couch and a", "couch"), ("a couch and a dog and the", "dog"), ("a and a", "")],
)
def test_and_joins_no_word_with_itself(caption: str, barred: str) -> None:
    words = "a the and couch dog".split()
    found = Wording(words).repeating([words.index(word) for word in caption.split()])
    assert [words[token] for token in found] == barred.split()


def test_captions_repeat_no_phrase(int8: CaptionsPredictor) -> None:
    for answer in described(int8, *(Describe(content, alternatives=9, beam=10) for content in PHOTOGRAPHS)):
        for caption in (answer.text, *(other.caption for other in answer.alternatives)):
            pairs = list(pairwise(caption.split()))
            content = [pair for pair in pairs if not {"a", "his", "their"} & {*pair}]
            assert len(set(content)) == len(content)


def test_a_probe_can_be_recorded(bundle: Bundle) -> None:
    opened = {p: CaptionsPredictor.open(bundle, p, Resources()) for p in PRECISIONS}
    found = probe(opened, {"image": base64.b64encode(PHOTOGRAPHS[0]).decode()})
    assert found["answers"]["int8"][0][0] == described(opened["int8"], Describe(PHOTOGRAPHS[0]))[0].text


def test_below_the_threshold_there_is_no_caption_but_a_list_of_tags(bundle: Bundle) -> None:
    names = (*Signs._fields, *map(squared, Signs._fields))
    calibration = dict.fromkeys(names, 0.0) | {"bias": 0.0, "threshold": 0.4}
    calibrated = replace(bundle, manifest=bundle.manifest.model_copy(update={"calibration": calibration}))
    predictor = CaptionsPredictor.open(calibrated, "int8", Resources())
    sure, unsure = described(predictor, Describe(PHOTOGRAPHS[0]), Describe(PHOTOGRAPHS[0], threshold=0.6))
    assert (sure.confidence, sure.reason, sure.text) == (0.5, None, sure.caption)
    assert (unsure.caption, unsure.confidence, unsure.log_probability) == (None, 0.5, sure.log_probability)
    assert unsure.text.startswith(f"{unsure.reason}; may show: ")
    assert "cat" in unsure.text
    payload = {"image": base64.b64encode(PHOTOGRAPHS[0]).decode()}
    assert predictor.probe(payload)[0] == [sure.caption, sure.log_probability]  # whatever the threshold
    del calibration["worst"]
    with pytest.raises(BundleError, match="calibration: expected 'worst'"):
        CaptionsPredictor.open(calibrated, "int8", Resources())
