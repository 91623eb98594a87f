"""Photographs with captions: Flickr8k, or any folder in its form or in COCO's."""

import hashlib
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from app.errors import CorpusError
from app.text import END, UNKNOWN, Vocabulary
from training.captions.features import Backbone, Content, extract
from training.corpora.files import CACHE, sha256

Floats: TypeAlias = npt.NDArray[np.float32]

SPLITS = ("train", "val", "test")
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

# Words as in the scores' Penn Treebank tokenizer, without punctuation. 24 of Flickr8k's 40,000 captions differ:
# abbreviations with a period (`u.`), brackets (`-lrb-`), `cannot`.
_WORD = re.compile(
    r"[^\W_]+(?:[-.&/,][^\W_]+)*?(?=n't\b)|n't\b|[^\W_]+(?:[-.&/][^\W_]+)*|'(?:s|re|ve|ll|d|m)\b|[#$%&*@+=]"
)


class Photo(NamedTuple):
    """A photograph's name, split, file and reference captions."""

    name: str
    split: str
    path: Path  # a file, or the tar that holds a member of this name
    captions: tuple[str, ...]  # as written


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
    corrupt: dict[str, str]  # skipped photographs and the reasons
    sha256: dict[str, str]  # of the captions, of each split's photographs, of the backbone's weights
    weights: Path | None = None  # the backbone's; None: torchvision's own

    def describe(self) -> dict[str, Any]:
        """The data's source as a run records it: folder, terms, backbone, counts and checksums."""
        source = asdict(self.source) | {"folder": str(self.source.folder.resolve())}
        counts = {name: len(split.names) for name, split in self.splits.items()}
        weights = None if self.weights is None else str(self.weights.resolve())
        seen = {"backbone": self.backbone, "weights": weights, "photographs": counts, "corrupt": self.corrupt}
        return source | seen | {"sha256": self.sha256}


def source(folder: Path, terms: str = "not stated") -> Source:
    """Return the corpus in a folder; Flickr8k is recognised by its captions, any other is named after the folder.

    The folder holds either `captions.json`, in the form of Flickr8k here or of COCO with a `split` in each image's
    entry, or COCO's own `captions_train*.json`, `captions_val*.json` and perhaps `captions_test*.json`. Photographs
    lie beside them, in a folder named as COCO names it (`train2017`), or in the tars that their entries name.
    """
    path = folder / "captions.json"
    if path.exists() and sha256(path) == FLICKR8K_SHA256:
        return Source("flickr8k", folder, FLICKR8K_TERMS, FLICKR8K_CAVEATS)
    return Source(folder.resolve().name, folder, terms)


def photos(source: Source) -> list[Photo]:
    """Return all photographs of a corpus; raise CorpusError for a missing photograph or one without captions."""
    found = list(chain.from_iterable(_read(path, split) for path, split in _caption_files(source.folder)))
    _check_present(found)
    for split in ("train", "val"):
        if not any(photo.split == split for photo in found):
            raise CorpusError(f"{source.folder}: expected photographs of the split {split}, found none")
    return found


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
    found = photos(source)
    splits: dict[str, Split] = {}
    corrupt: dict[str, str] = {}
    checksums = {"captions": _digest(sha256(path) for path, _ in _caption_files(source.folder))}
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


def words(caption: str) -> list[str]:
    """A caption's words in lower case, without punctuation, clitics split off (`does n't`, `man 's`)."""
    return _WORD.findall(caption.lower().replace("\u2019", "'"))


def count_vocabulary(captions: Iterable[str], min_count: int) -> Vocabulary:
    """`<eos>`, `<unk>` and the words with at least `min_count` occurrences in `captions`, most frequent first."""
    counts = Counter(chain.from_iterable(map(words, captions)))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary([END, UNKNOWN, *(word for word in ranked if counts[word] >= min_count)])


def _caption_files(folder: Path) -> list[tuple[Path, str | None]]:
    """The captions files, each with its split if it holds one split only."""
    path = folder / "captions.json"
    if path.exists():
        return [(path, None)]
    found: list[tuple[Path, str | None]] = [
        (path, split)
        for split in SPLITS
        for parent in (folder, folder / "annotations")
        for path in sorted(parent.glob(f"captions_{split}*.json"))
    ]
    if not found:
        raise CorpusError(f"{folder}: expected captions.json or captions_train*.json, found neither")
    return found


def _read(path: Path, split: str | None) -> list[Photo]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _coco(content, path, split) if "annotations" in content else _documented(content, path)
    except KeyError as error:
        raise CorpusError(f"{path}: expected an entry with {error}, found one without") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path}: expected captions in JSON, found otherwise: {error}") from error


def _documented(content: Mapping[str, Any], path: Path) -> list[Photo]:
    return [
        _photo(entry["file"], entry["split"], path.parent / entry.get("tar", entry["file"]), entry["captions"])
        for entry in content["images"]
    ]


def _coco(content: Mapping[str, Any], path: Path, split: str | None) -> list[Photo]:
    """Read COCO's form: images and annotations, joined by the image's id."""
    images = {image["id"]: image for image in content["images"]}
    captions = defaultdict[Any, list[str]](list)
    for annotation in content["annotations"]:
        if annotation["image_id"] not in images:
            number, caption = annotation["image_id"], annotation["caption"]
            raise CorpusError(f"{path}: expected an image {number} for the caption {caption!r}, found none")
        captions[annotation["image_id"]].append(annotation["caption"])
    folder = _beside(path)
    return [
        _photo(image["file_name"], split or image["split"], folder / image["file_name"], captions[number])
        for number, image in images.items()
    ]


def _beside(path: Path) -> Path:
    """The folder of the photographs of a COCO file: `train2017` for `annotations/captions_train2017.json`."""
    top = path.parent.parent if path.parent.name == "annotations" else path.parent
    named = top / path.stem.removeprefix("captions_")
    return named if named.is_dir() else top


def _photo(name: str, split: str, path: Path, captions: Sequence[str]) -> Photo:
    if split not in SPLITS:
        raise CorpusError(f"{name}: expected a split of {', '.join(SPLITS)}; found {split}")
    if not any(map(words, captions)):
        raise CorpusError(f"{name}: expected a caption, found none")
    return Photo(name, split, path, tuple(captions))


def _check_present(photos: Sequence[Photo]) -> None:
    members: dict[Path, set[str]] = {}
    for photo in photos:
        if photo.path.suffix == ".tar" and photo.path not in members:
            members[photo.path] = _members(photo.path)
        present = photo.name in members[photo.path] if photo.path.suffix == ".tar" else photo.path.is_file()
        if not present:
            raise CorpusError(
                f"{photo.path}: expected the photograph {photo.name} of {photo.captions[0]!r}, found none"
            )


def _members(path: Path) -> set[str]:
    try:
        with tarfile.open(path) as tar:
            return {member.name for member in tar if member.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise CorpusError(f"{path}: expected a readable tar, found: {error}") from error


def _digest(checksums: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(checksums).encode()).hexdigest()
