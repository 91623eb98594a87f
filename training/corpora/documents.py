"""Corpora of documents from many sources: files, registers, and documents as pieces on disk.

A folder holds `NAME.train.txt` and `NAME.valid.txt` (also .gz, .xz) of each source; a blank line ends a document. A
document is `<doc>` and its lines, joined by line breaks; the `<doc>` of the next one ends it.
"""

import hashlib
import json
import math
import random
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from app.errors import CorpusError
from app.text.subword import SubwordTokenizer
from training.corpora.files import CACHE, fill, open_text, sha256
from training.corpora.parallel import CHUNK, chunks, parallel

PieceIds: TypeAlias = npt.NDArray[np.uint16]
Files: TypeAlias = Mapping[str, Sequence[Path]]
"""The files of each source."""
Part: TypeAlias = tuple[str, bool]
"""Lines of a document, and whether they go on in the document of the part before."""

_FILE = re.compile(r"(?P<name>[\w-]+)\.(?P<split>train|valid)\.txt(?:\.gz|\.xz)?")
_VERSION = 1  # of the arrays on disk

REGISTERS: Final[dict[str, tuple[str, ...]]] = {
    "chat": ("selfdialogue", "chitchat", "topicalchat", "dream", "dailydialog", "esconv", "meld"),
    "e-mail": ("clinton", "aeslc", "spamassassin"),
    "SMS": ("sms",),
    "forum": ("stackexchange", "irc", "goemotions", "webtext", "tweets"),
    "blogs": ("blogs",),
    "sentences": ("tatoeba",),
    "reviews": ("imdb", "products"),
    "spoken": ("ted", "changelog", "crd3", "qmsum", "switchboard"),
    "news": ("bbc", "abc"),
    "edited": ("fiction", "wikipedia", "brown"),
    "assistant tasks": ("sgd", "multiwoz", "multidogo"),
}
"""The sources of each register of everyday English; another source is a register of its own."""
TEMPLATED: Final = frozenset(REGISTERS["assistant tasks"])
"""Sources half made from templates: never repeated in training, left out of the mean over registers."""


@dataclass(frozen=True)
class Documents:
    """One source's documents as pieces; document k is ids[starts[k] : starts[k + 1]], its `<doc>` first."""

    ids: PieceIds  # memory-mapped
    starts: npt.NDArray[np.int64]  # (documents + 1,), memory-mapped
    size: int  # bytes of UTF-8, a line end a line included
    words: int  # separated by white space


@dataclass(frozen=True)
class DocumentCorpus:
    """The sources' documents by split, encoded with one tokenizer."""

    tokenizer: SubwordTokenizer
    train: dict[str, Documents]
    valid: dict[str, Documents]
    sha256: dict[str, str]  # of the files, by name

    def describe(self) -> dict[str, Any]:
        """Return the record of the data that a run keeps."""
        sizes = {
            split: {name: {"pieces": len(part.ids), "words": part.words} for name, part in parts.items()}
            for split, parts in (("train", self.train), ("valid", self.valid))
        }
        return {"name": "documents", "tokenizer": self.tokenizer.sha256, "sha256": self.sha256, **sizes}


def text_files(folders: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """Return the files of each source by split, train and valid; CorpusError if there is no training text."""
    found: dict[str, dict[str, list[Path]]] = {"train": {}, "valid": {}}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if match := _FILE.fullmatch(path.name):
                found[match["split"]].setdefault(match["name"], []).append(path)
    if not found["train"]:
        raise CorpusError(f"{', '.join(map(str, folders))}: expected NAME.train.txt, .gz or .xz; found none")
    return found


def documents(name: str, paths: Sequence[Path], lowered: float = 0.0) -> Iterator[str]:
    """Yield the documents of one source, their lines joined by line breaks.

    A share `lowered` of the lines is in lower case and without its final full stop, as people type in chats.
    """
    return (text for text, _ in parts(name, paths, lowered, math.inf))


def parts(name: str, paths: Sequence[Path], lowered: float, limit: float = CHUNK) -> Iterator[Part]:
    """Yield the documents of one source; one of more than `limit` characters in several parts, cut between lines."""
    draw = random.Random(name).random  # noqa: S311 - no secret
    for path in paths:
        lines, size, continued = list[str](), 0, False
        with open_text(path) as text:
            for line in chain(text, [""]):
                if bare := line.strip():
                    lines.append(_lowered(bare) if lowered and draw() < lowered else bare)
                    size += len(bare)
                if lines and (not bare or size >= limit):
                    yield "\n".join(lines), continued
                    lines, size, continued = [], 0, True
                continued = continued and bool(bare)


def load(
    folders: Sequence[Path], tokenizer: SubwordTokenizer, *, lowered: float = 0.1, cache: Path = CACHE
) -> DocumentCorpus:
    """Encode every source once: later calls map the arrays kept in `cache`, by content of files and tokenizer.

    `lowered`: see `documents`; of training texts alone. Raise CorpusError for a file that can't be read.
    """
    files = text_files(folders)
    checksums = {str(path): sha256(path) for names in files.values() for paths in names.values() for path in paths}
    splits = {
        split: {
            name: _mapped(name, files[split][name], tokenizer, lowered if split == "train" else 0.0, checksums, cache)
            for name in sorted(files[split])
        }
        for split in files
    }
    named = {f"{Path(path).parent.name}/{Path(path).name}": digest for path, digest in checksums.items()}
    return DocumentCorpus(tokenizer, splits["train"], splits["valid"], named)


def register_of(name: str) -> str:
    """Return the register of a source."""
    return next((register for register, names in REGISTERS.items() if name in names), name)


def register_means(sources: Mapping[str, float]) -> dict[str, float]:
    """Return the mean over the sources of each register, and `macro`: the mean over registers, TEMPLATED ones apart."""
    registers: dict[str, list[float]] = {}
    for name, value in sources.items():
        registers.setdefault(register_of(name), []).append(value)
    means = {register: sum(values) / len(values) for register, values in registers.items()}
    counted = [mean for register, mean in means.items() if register != register_of(next(iter(TEMPLATED)))]
    return means | {"macro": sum(counted or means.values()) / len(counted or means)}


def _lowered(line: str) -> str:
    line = line.lower()
    return line[:-1] if line.endswith(".") and not line.endswith("..") and len(line) > 1 else line


def _mapped(
    name: str,
    paths: Sequence[Path],
    tokenizer: SubwordTokenizer,
    lowered: float,
    checksums: Mapping[str, str],
    cache: Path,
) -> Documents:
    key = [_VERSION, name, [checksums[str(path)] for path in paths], tokenizer.sha256, lowered]
    folder = cache / "documents" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    texts = chunks(parts(name, paths, lowered), itemgetter(0), name, paths)
    fill(folder, partial(_write, parallel(_encode, tokenizer, texts)))
    counts = json.loads((folder / "counts.json").read_text())
    starts = np.memmap(folder / "starts.int64", np.int64, "r")
    ids = np.memmap(folder / "ids.uint16", np.uint16, "r") if starts[-1] else np.empty(0, np.uint16)
    return Documents(ids, starts, **counts)


class _Encoded(NamedTuple):
    """A chunk's pieces; `size` and `words` as in `Documents`."""

    ids: "array[int]"
    starts: "array[int]"  # of the documents that begin in it
    size: int
    words: int


def _encode(tokenizer: SubwordTokenizer, chunk: Iterable[Part]) -> _Encoded:
    ids, starts, size, words = array("H"), array("q"), 0, 0
    for text, continued in chunk:
        if not continued:
            starts.append(len(ids))
        ids.append(tokenizer.newline if continued else tokenizer.document)
        ids.extend(tokenizer.ids(text))
        size += len(text.encode()) + 1
        words += len(text.split())
    return _Encoded(ids, starts, size, words)


def _write(encoded: Iterable[_Encoded], folder: Path) -> None:
    """Fill a new folder."""
    pieces = size = words = 0
    with (folder / "ids.uint16").open("wb") as ids, (folder / "starts.int64").open("wb") as starts:
        for chunk in encoded:
            chunk.ids.tofile(ids)
            starts.write((np.array(chunk.starts, np.int64) + pieces).tobytes())
            pieces, size, words = pieces + len(chunk.ids), size + chunk.size, words + chunk.words
        starts.write(np.int64(pieces).tobytes())
    (folder / "counts.json").write_text(json.dumps({"size": size, "words": words}))
