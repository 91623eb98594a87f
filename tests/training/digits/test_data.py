"""MNIST: checked files, a fixed split, and errors when it is missing."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.datasets import MNIST  # type: ignore[import-untyped]

from app.errors import CorpusError
from training.digits import data as mnist
from training.digits.data import FILES, SPLIT_SEED, TERMS, DigitCorpus, load

CORPUS = Path(os.environ.get("TEST_DATA", "")) / "mnist"
TRAIN, VALID, TEST = 12, 5, 4  # images of the tiny corpus; VALID of the first are kept for validation


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    """MNIST's format: a magic number that ends in the count of axes, each one's length, the bytes."""
    header = [0x0800 + values.ndim, *values.shape]
    return gzip.compress(b"".join(part.to_bytes(4, "big") for part in header) + values.tobytes())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as torchvision does it; image n is of the shade n throughout, and its label n modulo 10."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    shades = [np.arange(TRAIN, dtype=np.uint8), np.arange(100, 100 + TEST, dtype=np.uint8)]
    contents = [each for shade in shades for each in (idx(np.tile(shade[:, None, None], (28, 28))), idx(shade % 10))]
    for name, content in zip(FILES, contents, strict=True):
        (raw / name).write_bytes(content)
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in zip(FILES, contents, strict=True)}
    md5 = [hashlib.md5(content, usedforsecurity=False).hexdigest() for content in contents]
    monkeypatch.setattr(mnist, "FILES", sha256)
    monkeypatch.setattr(mnist, "VALID", VALID)
    monkeypatch.setattr(MNIST, "resources", list(zip(FILES, md5, strict=True)))
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:1/"])  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "data"


def shades(images: torch.Tensor) -> list[int]:
    assert (images == images[:, :1, :1]).all()
    return images[:, 0, 0].tolist()


def test_the_training_images_are_parted_and_the_test_images_are_kept(folder: Path, tmp_path: Path) -> None:
    corpus = load(folder, tmp_path / "cache")
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [TRAIN - VALID, VALID, TEST]
    assert sorted(shades(corpus.train.images) + shades(corpus.valid.images)) == list(range(TRAIN))
    assert shades(corpus.test.images) == list(range(100, 100 + TEST))
    for part in (corpus.train, corpus.valid, corpus.test):
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert [shade % 10 for shade in shades(part.images)] == part.labels.tolist()


def test_the_split_is_the_same_each_time_whatever_else_draws(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    once = load(folder, tmp_path / "one")
    torch.manual_seed(2)
    again = load(folder, tmp_path / "other")
    assert shades(once.valid.images) == shades(again.valid.images)
    assert shades(once.train.images) == shades(again.train.images)


def test_nothing_is_written_to_the_folder(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    load(folder, tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_a_run_writes_down_states_the_files_and_their_terms(folder: Path, tmp_path: Path) -> None:
    assert load(folder, tmp_path / "cache").describe() == {
        "name": "mnist",
        "folder": str(folder),
        "terms": TERMS,
        "sha256": mnist.FILES,
        "split_seed": SPLIT_SEED,
    }


@pytest.mark.parametrize("name", FILES)
def test_another_file_is_rejected_by_name_with_both_checksums(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / "MNIST" / "raw" / name
    path.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(CorpusError) as refusal:
        load(folder, tmp_path / "cache")
    assert str(refusal.value) == f"{path}: expected MNIST's sha256 {mnist.FILES[name]}, found {found}"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / "MNIST" / "raw" / name
    path.unlink()
    with pytest.raises(CorpusError, match=f"{path}: can't be read: No such file or directory"):
        load(folder, tmp_path / "cache")


def test_without_a_folder_and_a_network_raises_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="MNIST: can't be downloaded: "):
        load(None, tmp_path / "cache")


def test_what_was_had_once_is_had_without_a_network(folder: Path, tmp_path: Path) -> None:
    expected = load(folder, tmp_path / "cache")
    found = load(None, tmp_path / "cache")
    assert torch.equal(found.train.images, expected.train.images)
    assert found.describe()["folder"] is None


# the real one


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> DigitCorpus:
    if not CORPUS.is_dir():
        pytest.skip("TEST_DATA names no folder with MNIST in mnist/")
    return load(CORPUS, tmp_path_factory.mktemp("cache"))


def test_mnist_has_its_sizes_and_its_split(real: DigitCorpus) -> None:
    assert [tuple(part.images.shape) for part in (real.train, real.valid, real.test)] == [
        (55_000, 28, 28),
        (5_000, 28, 28),
        (10_000, 28, 28),
    ]
    assert real.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert real.valid.labels.bincount().min() > 400
    kept = hashlib.sha256(real.valid.images.numpy().tobytes()).hexdigest()
    assert kept == "4faa4b9016bb05cdc4ba090a8792cf8064c2dd40bf4f7c7c7185c74c03f69a53"  # what earlier runs held back
