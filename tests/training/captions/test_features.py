"""Features: what a view shows, what is kept on disk and when it is used, what a backbone is."""

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model  # type: ignore[import-untyped]

from app.errors import CorpusError, SettingsError
from app.images import PHOTO_SIZE, decoded, normalised, photo
from training.captions.features import CROP_AREA, Backbone, Content, backbone, extract, view

CHECKSUM = "7" * 64


class Counting(nn.Module):
    """Four mean colours; it counts the photographs that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture
def tiny() -> Backbone:
    return Backbone("tiny", Counting().eval(), 12, "0" * 64)


def image(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


def contents(count: int) -> list[Content]:
    files = []
    for seed in range(count):
        stream = io.BytesIO()
        image(seed).save(stream, "PNG")
        files.append(Content(f"{seed}.png", stream.getvalue()))
    return files


def passed(backbone: Backbone) -> int:
    assert isinstance(backbone.module, Counting)
    return backbone.module.seen


# views


def test_the_first_view_is_the_whole_photograph_and_the_second_its_mirror_image() -> None:
    whole = photo(image(1))
    np.testing.assert_array_equal(view(image(1), CHECKSUM, 0), whole)
    np.testing.assert_array_equal(view(image(1), CHECKSUM, 1), whole[:, ::-1])


def test_crops_differ_from_each_other_and_depend_on_the_checksum_alone() -> None:
    crops = [view(image(1), CHECKSUM, index) for index in (2, 3, 4)]
    assert all(crop.shape == (PHOTO_SIZE, PHOTO_SIZE, 3) for crop in crops)
    assert not any(np.array_equal(crops[0], other) for other in crops[1:])
    np.testing.assert_array_equal(crops[0], view(image(1), CHECKSUM, 2))
    assert not np.array_equal(crops[0], view(image(1), "8" * 64, 2))


@pytest.mark.parametrize("odd", [False, True])
def test_a_crop_shows_most_of_the_photograph_the_odd_ones_mirrored(odd: bool) -> None:
    """On a ramp from left to right the share that is shown can be read off."""
    ramp = Image.fromarray(np.repeat(np.arange(224, dtype=np.uint8)[None, :, None], 224, 0).repeat(3, 2))
    for index in range(2 + odd, 30, 2):
        row = view(ramp, CHECKSUM, index)[0, :, 0].astype(int)
        across = (row[-1] - row[0]) / 223
        assert (across < 0) == odd
        assert abs(across) > np.sqrt(CROP_AREA * 3 / 4) - 0.02


# extraction


def test_features_are_the_networks_answer_to_each_view(tiny: Backbone, tmp_path: Path) -> None:
    (content,) = contents(1)
    features = extract([content], tiny, 3, tmp_path).features["0.png"]
    assert features.shape == (3, 12)
    shown = decoded(content.content)
    digest = extract([content], tiny, 3, tmp_path).sha256["0.png"]
    for index in range(3):
        expected = tiny.module(torch.from_numpy(normalised(view(shown, digest, index)[None])))
        np.testing.assert_allclose(features[index], expected[0].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 32, 33, 70])
def test_every_photograph_of_a_batch_gets_its_own_features(count: int, tiny: Backbone, tmp_path: Path) -> None:
    together = extract(contents(count), tiny, 1, tmp_path / "together").features
    assert list(together) == [f"{seed}.png" for seed in range(count)]
    last = contents(count)[-1]
    alone = extract([last], tiny, 1, tmp_path / "alone").features[last.name]
    np.testing.assert_allclose(together[last.name], alone, rtol=1e-5, atol=1e-6)


def test_what_was_computed_once_is_read_from_the_cache(tiny: Backbone, tmp_path: Path) -> None:
    first = extract(contents(3), tiny, 2, tmp_path)
    assert passed(tiny) == 6
    again = extract(contents(3), tiny, 2, tmp_path)
    fewer = extract(contents(3), tiny, 1, tmp_path)
    assert passed(tiny) == 6
    for name, features in first.features.items():
        np.testing.assert_array_equal(again.features[name], features)
        np.testing.assert_array_equal(fewer.features[name], features[:1])


def test_more_views_than_are_kept_are_computed(tiny: Backbone, tmp_path: Path) -> None:
    extract(contents(1), tiny, 1, tmp_path)
    assert extract(contents(1), tiny, 4, tmp_path).features["0.png"].shape == (4, 12)
    assert passed(tiny) == 1 + 4


def test_the_cache_goes_by_content_not_by_name(tiny: Backbone, tmp_path: Path) -> None:
    (content,) = contents(1)
    extract([content], tiny, 1, tmp_path)
    renamed = extract([content._replace(name="other.png")], tiny, 1, tmp_path)
    assert passed(tiny) == 1
    assert list(renamed.features) == ["other.png"]


@pytest.mark.parametrize("change", [{"name": "other"}, {"sha256": "1" * 64}])
def test_another_backbone_finds_nothing_in_the_cache(change: dict[str, Any], tiny: Backbone, tmp_path: Path) -> None:
    extract(contents(1), tiny, 1, tmp_path)
    extract(contents(1), replace(tiny, **change), 1, tmp_path)
    assert passed(tiny) == 2


def test_other_preprocessing_finds_nothing_in_the_cache(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(contents(1), tiny, 1, tmp_path)
    monkeypatch.setattr("training.captions.features.normalised", lambda pixels: normalised(pixels) * 2)
    extract(contents(1), tiny, 1, tmp_path)
    assert passed(tiny) == 2


def test_a_photograph_that_cannot_be_decoded_is_left_out_and_reported(tiny: Backbone, tmp_path: Path) -> None:
    good, truncated = contents(2)
    broken = [truncated._replace(content=truncated.content[:200]), Content("text.jpg", b"no image at all"), good]
    extracted = extract(broken, tiny, 1, tmp_path)
    assert list(extracted.features) == ["0.png"]
    assert list(extracted.corrupt) == ["1.png", "text.jpg"]
    assert all(name in reason for name, reason in extracted.corrupt.items())
    assert len(extracted.sha256) == 3


# backbones


def saved(name: str, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file(get_model(name, weights=None).state_dict(), path)
    return path


def images(count: int) -> Tensor:
    return torch.from_numpy(normalised(np.stack([photo(image(seed)) for seed in range(count)])))


def test_a_backbone_returns_the_input_of_its_last_layer(tmp_path: Path) -> None:
    path = saved("shufflenet_v2_x0_5", tmp_path)
    headless = backbone("shufflenet_v2_x0_5", path)
    whole = get_model("shufflenet_v2_x0_5", weights=None).eval()
    given: list[Tensor] = []
    whole.fc.register_forward_pre_hook(lambda layer, arguments: given.append(arguments[0]))
    whole.load_state_dict(load_file(path))
    whole(images(2))
    assert headless.weights == path
    features = headless.module(images(2))
    assert features.shape == (2, headless.size) == (2, 1024)
    torch.testing.assert_close(features, given[0], rtol=1e-3, atol=1e-4)


def test_other_weights_have_another_checksum(tmp_path: Path) -> None:
    first = backbone("shufflenet_v2_x0_5", saved("shufflenet_v2_x0_5", tmp_path))
    again = backbone("shufflenet_v2_x0_5", tmp_path / "weights.safetensors")
    assert first.sha256 == again.sha256
    assert backbone("shufflenet_v2_x0_5", saved("shufflenet_v2_x0_5", tmp_path)).sha256 != first.sha256


@pytest.mark.parametrize("name", ["resnet1000", "lenet", "fcn_resnet50"])
def test_a_backbone_that_is_no_classifier_of_torchvision_is_rejected(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^backbone: expected the name of a torchvision classifier, found {name}$"):
        backbone(name)


def test_a_classifier_without_a_linear_layer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^backbone: expected .* linear layer, found squeezenet1_1$"):
        backbone("squeezenet1_1", saved("squeezenet1_1", tmp_path))


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    path = saved("squeezenet1_1", tmp_path)
    with pytest.raises(CorpusError, match=r"weights\.safetensors: expected the weights of shufflenet_v2_x0_5"):
        backbone("shufflenet_v2_x0_5", path)


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_weights_that_cannot_be_read_are_rejected(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"weights\.safetensors: expected the weights of shufflenet_v2_x0_5"):
        backbone("shufflenet_v2_x0_5", path)


def test_weights_that_cannot_be_downloaded_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, weights: str) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr("training.captions.features.get_model", offline)
    with pytest.raises(CorpusError, match=r"^resnet18: expected to download the weights, found: no network$"):
        backbone("resnet18")


@pytest.fixture
def mobilenet() -> Path:
    folder = os.environ.get("TEST_DATA")
    if folder is None:
        pytest.skip("TEST_DATA names no folder of corpora")
    return Path(folder) / "cnn" / "mobilenet_v2.safetensors"


def test_mobilenet_v2_gives_the_mean_over_space_of_its_convolutions(mobilenet: Path) -> None:
    whole = get_model("mobilenet_v2", weights=None).eval()
    whole.load_state_dict(load_file(mobilenet))
    features = backbone("mobilenet_v2", mobilenet).module(images(2))
    torch.testing.assert_close(features, whole.features(images(2)).mean((2, 3)), rtol=1e-3, atol=1e-4)
