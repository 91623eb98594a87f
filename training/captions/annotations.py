"""Captions files in the forms that people have: our own, COCO's, Karpathy's and Kaggle's."""

import csv
import hashlib
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import CorpusError
from training.captions.vocabulary import words

SPLITS = ("train", "val", "test")
KAGGLE = 'a line "image,caption", then lines as "dog.jpg,A dog runs."'
EXAMPLES = {
    "our own": '{"images": [{"file": "dog.jpg", "split": "train", "captions": ["A dog runs."]}]}',
    "COCO's": (
        '{"images": [{"id": 7, "file_name": "dog.jpg"}], "annotations": [{"image_id": 7, "caption": "A dog runs."}]}'
    ),
    "Karpathy's": '{"images": [{"filename": "dog.jpg", "split": "train", "sentences": [{"raw": "A dog runs."}]}]}',
    "Kaggle's": KAGGLE,
}


class Photo(NamedTuple):
    """A photograph's name, split, file and reference captions."""

    name: str
    split: str
    path: Path  # a file, or the tar that holds a member of this name
    captions: tuple[str, ...]  # as written


class Listing(NamedTuple):
    """The photographs of a corpus, and what was skipped."""

    photos: list[Photo]
    skipped: dict[str, str]  # photographs that are missing, photographs and captions without words: the reasons


class _Entry(NamedTuple):
    """A photograph as a captions file names it."""

    name: str
    split: str | None  # None: the file has no splits
    captions: list[str]
    folder: str = ""  # the likely one, below the corpus's
    tar: str | None = None


def caption_files(folder: Path) -> list[tuple[Path, str | None]]:
    """Return the captions files, each with its split if it holds one only; raise CorpusError if there is none."""
    if (folder / "captions.json").exists():
        return [(folder / "captions.json", None)]
    found: list[tuple[Path, str | None]] = [
        (path, split)
        for split in SPLITS
        for parent in (folder, folder / "annotations")
        for path in sorted(parent.glob(f"captions_{split}*.json"))
    ]
    found = found or [(path, None) for path in (*sorted(folder.glob("dataset*.json")), *folder.glob("captions.txt"))]
    if not found:
        raise CorpusError(
            f"{folder}: expected captions.json, captions_train*.json, dataset*.json or captions.txt, found none of"
            f" them; captions.txt has {KAGGLE}"
        )
    return found[:1] if found[0][1] is None else found


def read(folder: Path) -> Listing:
    """Return the photographs with captions in a folder.

    A photograph lies in the folder that its file names, in the corpus's or in any folder directly below it. Without
    splits a tenth of the photographs each, drawn by their names, are for validation and test. Raise CorpusError for a
    file that can't be read, with an example of its form.
    """
    found, skipped = list[Photo](), dict[str, str]()
    entries = [entry for path, split in caption_files(folder) for entry in _entries(path, split)]
    drawn = _drawn_splits(entry.name for entry in entries if entry.split is None)
    below = {path.name: path for path in sorted(folder.glob("*/*"), reverse=True)}
    members: dict[str, set[str]] = {}
    for name, given, captions, likely, tar in entries:
        split = given or drawn[name]
        if split not in SPLITS:
            raise CorpusError(f"{name}: expected a split of {', '.join(SPLITS)}; found {split}")
        if tar is not None:
            if tar not in members:
                members[tar] = _members(folder / tar)
            path = folder / tar if name in members[tar] else None
        else:
            near = (folder / likely / name, folder / name)
            path = next((path for path in near if path.is_file()), below.get(Path(name).name))
        worded = tuple(caption for caption in captions if words(caption))
        if path is None:
            skipped[name] = f"expected a photograph in {folder if tar is None else folder / tar}, found none"
        elif not worded:
            skipped[name] = "expected a caption, found none"
        else:
            found.append(Photo(name, split, path, worded))
            if len(worded) < len(captions):
                skipped[f"{len(captions) - len(worded)} captions of {name}"] = "expected words, found none"
    return Listing(found, skipped)


def _entries(path: Path, split: str | None) -> list[_Entry]:
    """The entries of one file, by its form."""
    form = "Kaggle's"
    try:
        if path.suffix == ".txt":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                return _kaggle(lines)
        form = "our own"
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if "annotations" in content:
            form = "COCO's"
            return _coco(content, split, path)
        if any("sentences" in image for image in content["images"]):
            form = "Karpathy's"
            # `restval` are COCO's photographs that Karpathy trained on besides
            return [
                _Entry(
                    image["filename"],
                    "train" if image["split"] == "restval" else image["split"],
                    [said["raw"] for said in image["sentences"]],
                    image.get("filepath", ""),
                )
                for image in content["images"]
            ]
        return [
            _Entry(image["file"], image["split"], _as_list(image["captions"]), tar=image.get("tar"))
            for image in content["images"]
        ]
    except KeyError as error:
        fault = f"expected an entry with {error}, found one without"
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        fault = f"expected captions in {'CSV' if path.suffix == '.txt' else 'JSON'}, found otherwise: {error}"
    raise CorpusError(f"{path}: {fault}; an example of {form} form: {EXAMPLES[form]}")


def _as_list(captions: str | list[str]) -> list[str]:
    """One caption may be given as a string."""
    return [captions] if isinstance(captions, str) else [*captions]


def _coco(content: Mapping[str, Any], split: str | None, path: Path) -> list[_Entry]:
    """Images and annotations, joined by the image's id."""
    captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in captions:
            number, caption = annotation["image_id"], annotation["caption"]
            raise CorpusError(f"{path}: expected an image {number} for the caption {caption!r}, found none")
        captions[annotation["image_id"]] += _as_list(annotation["caption"])
    folder = path.stem.removeprefix("captions_")
    return [
        _Entry(image["file_name"], split or image.get("split"), captions[image["id"]], folder)
        for image in content["images"]
    ]


def _kaggle(lines: Iterable[str]) -> list[_Entry]:
    captions = defaultdict[str, list[str]](list)
    rows = csv.reader(lines)
    header = next(rows, [])
    if header != ["image", "caption"]:
        raise ValueError(f"the first line is {','.join(header)!r}")
    for row in rows:
        if len(row) == 1:
            raise ValueError(f"line {rows.line_num} is {row[0]!r}")
        if row:
            captions[row[0]].append(",".join(row[1:]))  # a caption with commas need not be quoted
    return [_Entry(name, None, said) for name, said in captions.items()]


def _drawn_splits(names: Iterable[str]) -> dict[str, str]:
    """A split by name: a tenth for validation, a tenth for the test."""
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    tenth = max(len(ranked) // 10, 1)
    return {name: ("val", "test", "train")[min(rank // tenth, 2)] for rank, name in enumerate(ranked)}


def _members(path: Path) -> set[str]:
    try:
        with tarfile.open(path) as tar:
            return {member.name for member in tar if member.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise CorpusError(f"{path}: expected a readable tar, found: {error}") from error
