"""MNIST: 60,000 handwritten digits for training and validation, 10,000 for the test."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import MNIST  # type: ignore[import-untyped]

from app.errors import CorpusError
from training.corpora.files import CACHE, locked, sha256

VALID = 5_000  # images kept from training
SPLIT_SEED = 1
FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
TERMS = (
    "MNIST, copyright Yann LeCun and Corinna Cortes, commonly cited as CC BY-SA 3.0; the digits were written by"
    " employees of the US Census Bureau and by American high-school students"
)


@dataclass(frozen=True)
class Digits:
    """Images (N, 28, 28) uint8, light on black, and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DigitCorpus:
    """MNIST in its three parts; the test part is read once, to publish a model."""

    train: Digits
    valid: Digits
    test: Digits
    folder: Path | None  # source of the files; None: downloaded

    def describe(self) -> dict[str, Any]:
        """The data's source as a run records it: name, folder, terms and checksums."""
        folder = None if self.folder is None else str(self.folder.resolve())
        return {"name": "mnist", "folder": folder, "terms": TERMS, "sha256": FILES, "split_seed": SPLIT_SEED}


def load(folder: Path | None, cache: Path = CACHE) -> DigitCorpus:
    """MNIST from `folder` (torchvision's layout, MNIST/raw/*.gz) or, if None, downloaded once; checksums are verified.

    Nothing is written to `folder`. Raise CorpusError for a file that is missing or differs, or if there is no network.
    """
    with locked(cache / "mnist"):
        if folder is not None:
            _copy(folder, cache)
        try:
            parts = [MNIST(cache / "mnist", train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:  # torchvision's errors for no network and for unexpected bytes
            raise CorpusError(f"MNIST: can't be downloaded: {error}") from error
    train, test = (Digits(part.data, part.targets) for part in parts)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    kept, held = order[VALID:], order[:VALID]
    return DigitCorpus(
        Digits(train.images[kept], train.labels[kept]), Digits(train.images[held], train.labels[held]), test, folder
    )


def _copy(folder: Path, cache: Path) -> None:
    """Copy the verified files: torchvision unpacks beside the files it finds."""
    copies = cache / "mnist" / "MNIST" / "raw"
    copies.mkdir(parents=True, exist_ok=True)
    for name, expected in FILES.items():
        path = folder / "MNIST" / "raw" / name
        found = sha256(path)
        if found != expected:
            raise CorpusError(f"{path}: expected MNIST's sha256 {expected}, found {found}")
        shutil.copyfile(path, copies / name)
