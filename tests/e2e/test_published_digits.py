"""The published digit reader over HTTP: its claimed accuracy, robustness and resource use."""

import io
import os
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app import bundle as bundles
from app.images import framed_array, png
from app.runtime.families.digits import Classification, DigitsPredictor
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from tests.e2e.conftest import serving
from training.digits.data import Digits, load

STORE = Path(__file__).parents[2] / "models_store"
CORPUS = Path(os.environ.get("TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mnist"
REQUEST_IMAGES = 32
EVERY = 5  # so many of the 10,000 test images are posted once; a published model was measured on all
MAX_CPU_S = 6  # for these; CPU time, since wall time depends on other load
Pixels = npt.NDArray[np.uint8]

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="TEST_DATA names no folder with MNIST in mnist/")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Every EVERY-th test image."""
    test = load(CORPUS, tmp_path_factory.mktemp("cache")).test
    return Digits(test.images[::EVERY], test.labels[::EVERY])


@pytest.fixture(scope="module")
def predictor() -> DigitsPredictor:
    found = load_predictor(bundles.read(STORE / "digits" / bundles.current(STORE, "digits")))
    assert isinstance(found, DigitsPredictor)
    return found


class Service:
    """A running server of the published models."""

    def __init__(self, client: httpx.Client, pid: int) -> None:
        self.client = client
        self.pid = pid

    def read(self, images: Sequence[bytes], query: str = "") -> list[dict[str, Any]]:
        """Return the results for these images, posted REQUEST_IMAGES at a time."""
        return [
            one
            for start in range(0, len(images), REQUEST_IMAGES)
            for one in self._post(images[start:][:REQUEST_IMAGES], query)
        ]

    def _post(self, images: Sequence[bytes], query: str) -> list[dict[str, Any]]:
        files = [("image", ("digit.png", content, "image/png")) for content in images]
        response = self.client.post(f"/digits{query}", files=files)
        assert response.status_code == 200, response.text
        results: list[dict[str, Any]] = response.json()["results"]
        return results

    def cpu_seconds(self) -> float:
        """Return the CPU seconds since the process started."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime

    def resident(self) -> float:
        """Return the resident memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(STORE) as (client, process):
        yield Service(client, process.pid)


def share_right(results: Sequence[dict[str, Any]], digits: Digits) -> float:
    labels = digits.labels.tolist()
    return float(np.mean([one["digit"] == label for one, label in zip(results, labels, strict=False)]))


def test_posted_test_images_match_the_offline_results_within_cpu_and_memory_limits(
    service: Service, predictor: DigitsPredictor, mnist: Digits
) -> None:
    images = mnist.images.numpy()
    uploads = [png(image) for image in images]
    before = service.cpu_seconds()
    results = service.read(uploads)
    assert service.cpu_seconds() - before <= MAX_CPU_S
    assert share_right(results, mnist) >= 0.995
    assert np.mean([one["rejected"] for one in results]) <= 0.002
    offline: list[Classification] = answer_all(predictor, [framed_array(image) for image in images])
    for found, expected in zip(results, offline, strict=True):
        assert (found["digit"], found["reason"]) == (expected.digit, expected.reason)
        assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert found["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
    assert service.resident() < 600


def enlarged(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((112, 112), Image.Resampling.BICUBIC))


def off_centre(image: Pixels) -> Pixels:
    """Place the digit 30 % off the middle of a large canvas."""
    canvas = np.zeros((112, 112), np.uint8)
    canvas[8:36, 76:104] = image
    return canvas


def as_jpeg(image: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=50)
    return stream.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: png(255 - image), id="inverted"),
        pytest.param(lambda image: png(enlarged(image)), id="four times the size"),
        pytest.param(lambda image: png(off_centre(image)), id="off centre"),
        pytest.param(as_jpeg, id="JPEG"),
    ],
)
def test_a_digit_is_recognised_after_common_transformations(
    change: Callable[[Pixels], bytes], service: Service, mnist: Digits
) -> None:
    some = Digits(mnist.images[:160], mnist.labels[:160])
    assert share_right(service.read([change(image) for image in some.images.numpy()]), some) >= 0.97


def test_a_blank_image_is_rejected_and_the_digit_beside_it_recognised(service: Service, mnist: Digits) -> None:
    blank, digit = service.read([png(np.full((300, 200), 255, np.uint8)), png(mnist.images[0].numpy())])
    assert (blank["digit"], blank["rejected"], blank["reason"]) == (None, True, "blank image")
    assert (digit["digit"], digit["rejected"], digit["reason"]) == (7, False, None)


def test_framing_an_mnist_image_returns_it_unchanged(service: Service, mnist: Digits) -> None:
    images = mnist.images[:8].numpy()
    for result, image in zip(service.read([png(image) for image in images], "?framed=true"), images, strict=True):
        content = b64decode(result["framed"].removeprefix("data:image/png;base64,"), validate=True)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), image)
