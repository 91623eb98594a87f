"""The corpus of a captioner: captions, and features of their photographs."""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from app.errors import CorpusError
from app.text import Vocabulary
from training.captions.annotations import SPLITS, Listing, Photo, caption_files, read
from training.captions.features import Backbone, Content, extract
from training.captions.vocabulary import count_vocabulary
from training.corpora.files import CACHE, sha256

Floats: TypeAlias = npt.NDArray[np.float32]

FLICKR8K_SHA256 = "864d473b0576dfd5231d4d86c99c022c094bd5af068d20767d0a4acf35e6156a"  # of its captions.json
FLICKR8K_TERMS = (
    "Flickr8k (M. Hodosh, P. Young, J. Hockenmaier, JAIR 47, 2013): for non-commercial research and education; each"
    " photograph belongs to its author"
)
FLICKR8K_CAVEATS = (
    (
        "Its photographs are of people and dogs that do something, mostly outdoors, as Flickr had them until 2013: it"
        " sees such scenes in other photographs as well, and guesses at age and sex from looks."
    ),
)
CAPTIONS2_SHA256 = "013888381770ef317250c5e4aa375b37c99cbffb3bdeed7b220551827880c6c8"  # likewise
CAPTIONS2_TERMS = (
    "COCO captions (X. Chen et al. 2015; T.-Y. Lin et al., ECCV 2014), CC BY 4.0; each photograph belongs to its Flickr"
    " author under the Creative Commons licence that COCO lists for it, some of them non-commercial: research"
)
CAPTIONS2_CAVEATS = (
    (
        "About 90 % of its COCO photographs are of val2014: scores on COCO's Karpathy splits or on val2017 would be of"
        " photographs it may have seen."
    ),
)


@dataclass(frozen=True)
class Source:
    """Name, folder and terms of use of a corpus of captions."""

    name: str
    folder: Path
    terms: str  # of use of photographs and captions
    caveats: tuple[str, ...] = ()  # limitations of a model of this corpus, a sentence or two each


@dataclass(frozen=True)
class Split:
    """The readable photographs of a split, in the order of the captions file."""

    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]  # of each photograph, as written
    features: Floats  # (N, views, F)


@dataclass(frozen=True)
class CaptionCorpus:
    """Training data of the recipe: features, not pixels."""

    source: Source
    vocabulary: Vocabulary
    backbone: str
    splits: dict[str, Split]  # by SPLITS; test may be missing
    corrupt: dict[str, str]  # skipped photographs and captions, and the reasons
    sha256: dict[str, str]  # of the captions, of each split's photographs, of the backbone's weights
    weights: Path | None = None  # the backbone's; None: torchvision's own

    @property
    def sources(self) -> tuple[Source, ...]:
        """The collections: one."""
        return (self.source,)

    def describe(self) -> dict[str, Any]:
        """The data's source as a run records it: folder, terms, backbone, counts and checksums."""
        source = asdict(self.source) | {"folder": str(self.source.folder.resolve())}
        counts = {name: len(split.names) for name, split in self.splits.items()}
        weights = None if self.weights is None else str(self.weights.resolve())
        seen = {"backbone": self.backbone, "weights": weights, "photographs": counts, "corrupt": self.corrupt}
        return source | seen | {"sha256": self.sha256}


def source(folder: Path, terms: str = "not stated") -> Source:
    """Return the corpus in a folder; Flickr8k and captions2 are recognised, any other is named after the folder."""
    path = folder / "captions.json"
    checksum = sha256(path) if path.exists() else None
    if checksum == FLICKR8K_SHA256:
        return Source("flickr8k", folder, FLICKR8K_TERMS, FLICKR8K_CAVEATS)
    if checksum == CAPTIONS2_SHA256:
        return Source("captions2", folder, CAPTIONS2_TERMS, CAPTIONS2_CAVEATS)
    return Source(folder.resolve().name, folder, terms)


def photos(source: Source) -> list[Photo]:
    """Return all photographs of a corpus that are there and have captions; see `annotations.read`.

    Raise CorpusError if there are none for training or validation.
    """
    return listed(source).photos


def contents(photos: Iterable[Photo]) -> Iterator[Content]:
    """Yield the photographs' bytes in order; a tar is opened once for consecutive photographs."""
    for path, held in groupby(photos, lambda photo: photo.path):
        if path.suffix != ".tar":
            yield from (Content(photo.name, path.read_bytes()) for photo in held)
            continue
        with tarfile.open(path) as tar:
            for photo in held:
                member = tar.extractfile(photo.name)
                assert member is not None, "photos() lists files alone"
                yield Content(photo.name, member.read())


def load(source: Source, backbone: Backbone, *, views: int, min_count: int, cache: Path = CACHE) -> CaptionCorpus:
    """Read a corpus and extract features by `backbone`: `views` views of training photographs, the others whole.

    The vocabulary holds the words with `min_count` occurrences in the training captions, `<eos>` and `<unk>`.
    Photographs that can't be decoded are skipped and listed in `corrupt`. Raise CorpusError as `photos` does.
    """
    found, corrupt = listed(source)
    splits: dict[str, Split] = {}
    checksums = {"captions": _digest(sha256(path) for path, _ in caption_files(source.folder))}
    for name in SPLITS:
        members = [photo for photo in found if photo.split == name]
        extracted = extract(contents(members), backbone, views if name == "train" else 1, cache)
        seen = [photo for photo in members if photo.name in extracted.features]
        corrupt |= extracted.corrupt
        checksums[name] = _digest(extracted.sha256[photo.name] for photo in members)
        if not seen and name != "test":
            raise CorpusError(
                f"{source.folder}: expected photographs of the split {name} that can be decoded, found none"
            )
        if seen:
            features = np.stack([extracted.features[photo.name] for photo in seen])
            splits[name] = Split(tuple(p.name for p in seen), tuple(p.captions for p in seen), features)
    checksums["backbone"] = backbone.sha256
    vocabulary = count_vocabulary(chain.from_iterable(splits["train"].captions), min_count)
    return CaptionCorpus(source, vocabulary, backbone.name, splits, corrupt, checksums, backbone.weights)


def listed(source: Source) -> Listing:
    """Return the photographs of a corpus and what was skipped; raise CorpusError as `photos` does."""
    listing = read(source.folder)
    for split in ("train", "val"):
        if not any(photo.split == split for photo in listing.photos):
            skipped = "".join(f"; {name} skipped: {reason}" for name, reason in [*listing.skipped.items()][:1])
            raise CorpusError(f"{source.folder}: expected photographs of the split {split}, found none{skipped}")
    return listing


def _digest(checksums: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(checksums).encode()).hexdigest()
