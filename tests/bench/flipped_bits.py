"""Flip bits of bundles, one at a time: every one must be rejected by a message that names the file.

    python -m tests.bench.flipped_bits --flips 2000

Files are drawn with equal shares, so that small ones, such as manifests, get as many flips as weights. Prints a table
and a last line of JSON; the exit status is 1 if a flip went unnoticed.
"""

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from app import bundle as bundles
from app.errors import BundleError
from app.manifest import MANIFEST, SEAL


@dataclass(frozen=True)
class Flip:
    """One flipped bit, and the error of reading the bundle with it; None if it went unnoticed."""

    file: str  # model/version/name
    bit: int
    error: str | None

    @property
    def rejected(self) -> bool:
        """True if the error names the file; a wrong checksum of the manifest is an error of the manifest."""
        return any(name in (self.error or "") for name in (self.file, self.file.replace(SEAL, MANIFEST)))


def flip_bits(store: Path, files: Sequence[Path], flips: int, seed: int = 1) -> list[Flip]:
    """Read the bundle of a drawn file with one drawn bit flipped, `flips` times; each flip is undone."""
    generator = random.Random(seed)
    found = []
    for _ in range(flips):
        path = generator.choice(files)
        bit = generator.randrange(path.stat().st_size * 8)
        _flip(path, bit)
        try:
            bundles.read(path.parent)
            error = None
        except BundleError as caught:
            error = str(caught)
        _flip(path, bit)
        found.append(Flip(path.relative_to(store).as_posix(), bit, error))
    return found


def bundle_files(store: Path) -> list[Path]:
    """Return all files of all bundles."""
    folders = [store / model / version for model in bundles.models(store) for version in bundles.versions(store, model)]
    return [path for folder in folders for path in sorted(folder.iterdir())]


def _flip(path: Path, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(bit // 8)
        (value,) = stream.read(1)
        stream.seek(bit // 8)
        stream.write(bytes([value ^ 1 << bit % 8]))


def main(store: Path = Path("models_store"), flips: int = 2000, seed: int = 1) -> int:
    """Flip bits of a copy of the store.

    Args:
        store: Folder of published bundles.
        flips: Number of bits.
        seed: Seed of the draws.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(store, Path(folder, "store")))
        found = flip_bits(copy, bundle_files(copy), flips, seed)
    tried, rejected = Counter(one.file for one in found), Counter(one.file for one in found if one.rejected)
    for file in sorted(tried):
        print(f"{tried[file]:6} flipped {rejected[file]:6} rejected  {file}")
    print(json.dumps({"flips": len(found), "rejected": rejected.total(), "files": len(tried)}))
    return int(rejected.total() < len(found))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
