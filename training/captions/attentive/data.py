"""The corpus of the attentive captioner: photographs of several collections, and sentences without photographs."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import CorpusError
from app.images import Detection
from app.text import Vocabulary
from training.captions import data
from training.captions.annotations import SPLITS, Photo, caption_files
from training.captions.attentive.sights import Encoders, Halves, Sight, extract
from training.captions.data import Source
from training.captions.vocabulary import count_vocabulary, words
from training.corpora.files import CACHE, open_text, sha256


@dataclass(frozen=True)
class Split:
    """The readable photographs of a split, collection by collection, in the order of the captions files."""

    photos: tuple[Photo, ...]
    collections: tuple[int, ...]  # of each photograph: the index of its source
    grids: Halves  # (N, views, 81, 352)
    pooled: Halves  # (N, views, 1280)
    detections: tuple[list[Detection], ...]

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """The captions of each photograph, as written."""
        return [photo.captions for photo in self.photos]


@dataclass(frozen=True)
class AttentiveCorpus:
    """Training data of the recipe."""

    sources: tuple[Source, ...]
    texts: tuple[Path, ...]
    sentences: tuple[str, ...]  # of the texts
    vocabulary: Vocabulary
    encoders: Encoders
    splits: dict[str, Split]  # by SPLITS; test may be missing
    corrupt: dict[str, str]  # skipped photographs and captions, and the reasons
    sha256: dict[str, str]  # of captions, texts, each split's photographs and the encoders
    cache: Path = CACHE

    def describe(self) -> dict[str, Any]:
        """The data's sources as a run records them: folders, files, terms, counts and checksums."""
        return {
            "name": "+".join(source.name for source in self.sources),
            "folders": [str(source.folder.resolve()) for source in self.sources],
            "terms": [source.terms for source in self.sources],
            "texts": [str(path.resolve()) for path in self.texts],
            "weights": str(self.encoders.weights.resolve()),
            "detector": str(self.encoders.detector_file.resolve()),
            "cache": str(self.cache.resolve()),
            "photographs": {name: len(split.photos) for name, split in self.splits.items()},
            "sentences": len(self.sentences),
            "corrupt": self.corrupt,
            "sha256": self.sha256,
        }


def load(
    sources: Sequence[Source],
    texts: Sequence[Path],
    encoders: Encoders,
    *,
    views: int,
    min_count: int,
    cache: Path = CACHE,
) -> AttentiveCorpus:
    """Read collections and texts, and see `views` views of training photographs, the others whole.

    The vocabulary holds the words with `min_count` occurrences in training captions and sentences, `<eos>` and `<unk>`.
    Raise CorpusError as `data.photos` does, and for a split train or val without readable photographs.
    """
    listed = [data.listed(source) for source in sources]
    corrupt = {name: reason for listing in listed for name, reason in listing.skipped.items()}
    checksums = {"captions": _digest(sha256(path) for each in sources for path, _ in caption_files(each.folder))}
    checksums |= {"texts": _digest(map(sha256, texts)), "encoders": encoders.sha256}
    splits: dict[str, Split] = {}
    for name in SPLITS:
        members = [(photo, index) for index, each in enumerate(listed) for photo in each.photos if photo.split == name]
        seen = extract(data.contents(photo for photo, _ in members), encoders, views if name == "train" else 1, cache)
        corrupt |= seen.corrupt
        checksums[name] = _digest(seen.sha256[photo.name] for photo, _ in members)
        readable = [member for member in members if member[0].name in seen.found]
        if readable:
            splits[name] = _split(readable, seen.found)
        elif name != "test":
            raise CorpusError(f"{name}: expected photographs that can be decoded, found none")
    sentences = list[str]()
    for path in texts:
        with open_text(path) as lines:
            sentences += (line.strip() for line in lines if words(line))
    worded = chain(chain.from_iterable(splits["train"].captions), sentences)
    vocabulary = count_vocabulary(worded, min_count)
    return AttentiveCorpus(
        tuple(sources), tuple(texts), tuple(sentences), vocabulary, encoders, splits, corrupt, checksums, cache
    )


def _split(members: Sequence[tuple[Photo, int]], found: dict[str, Sight]) -> Split:
    """Join the sights of photographs, which leave `found` one by one: together they are most of the memory."""
    photos, collections = zip(*members, strict=True)
    first = found[photos[0].name]
    grids = np.empty((len(photos), *first.grids.shape), np.float16)
    pooled = np.empty((len(photos), *first.pooled.shape), np.float16)
    detections = []
    for index, photo in enumerate(photos):
        sight = found.pop(photo.name)
        grids[index], pooled[index] = sight.grids, sight.pooled
        detections.append(sight.detections)
    return Split(photos, collections, grids, pooled, tuple(detections))


def _digest(checksums: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(checksums).encode()).hexdigest()
