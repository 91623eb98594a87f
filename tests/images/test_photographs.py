import io

import numpy as np
import pytest
from PIL import Image

from app.images import decoded, normalised, photo, png


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_an_image_of_the_right_size_is_returned_bit_for_bit() -> None:
    image = noise(224, 224)
    assert (photo(image) == np.asarray(image)).all()


@pytest.mark.parametrize("size", [(600, 400), (300, 900), (1, 1), (8, 8), (5000, 3)])
def test_the_whole_image_is_squeezed_not_cropped(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    image.paste((200, 100, 50), (0, 0, size[0], (size[1] + 1) // 2))
    found = photo(image)
    assert found.shape == (224, 224, 3)
    assert found.dtype == np.uint8
    assert np.abs(found[20, 112].astype(int) - (200, 100, 50)).max() <= 25
    if size[1] > 3:
        assert np.abs(found[-20, 112].astype(int) - (10, 20, 30)).max() <= 25


def test_shrinking_averages_instead_of_skipping() -> None:
    checks = Image.fromarray((np.indices((896, 896)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert np.abs(photo(checks)[8:-8, 8:-8].astype(int) - 127).max() <= 3


def test_the_images_returned_may_be_written_to() -> None:
    found = photo(noise(224, 224))
    found[0, 0] = 0


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_normalised_pixels_have_channels_first_and_imagenet_statistics(lead: tuple[int, ...]) -> None:
    pixels = np.broadcast_to(np.array([124, 116, 104], np.uint8), (*lead, 5, 4, 3))
    found = normalised(pixels)
    assert found.shape == (*lead, 3, 5, 4)
    assert found.dtype == np.float32
    assert np.abs(found).max() < 0.02
    white = normalised(np.full((*lead, 5, 4, 3), 255, np.uint8))
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert np.allclose(np.moveaxis(white, -3, -1).reshape(-1, 3), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28), (7, 9, 3)])
def test_a_png_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = png(pixels)
    assert (np.asarray(Image.open(io.BytesIO(content))) == pixels).all()
    assert decoded(content).size == (shape[1], shape[0])
