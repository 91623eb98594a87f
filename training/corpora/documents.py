"""Corpora of documents from many sources: files, registers, documents as pieces on disk, one shuffled stream an epoch.

A folder holds `NAME.train.txt` and `NAME.valid.txt` (also .gz, .xz) of each source; a blank line ends a document. A
document is `<doc>` and its lines, joined by line breaks; the `<doc>` of the next one ends it.
"""

import hashlib
import json
import random
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from app.errors import CorpusError
from app.text.subword import SubwordTokenizer
from training.corpora.files import CACHE, open_text, sha256

PieceIds: TypeAlias = npt.NDArray[np.uint16]
Files: TypeAlias = Mapping[str, Sequence[Path]]
"""The files of each source."""

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
    starts: npt.NDArray[np.int64]  # (documents + 1,)
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
    draw = random.Random(name).random  # noqa: S311 - no secret
    lines: list[str] = []
    for path in paths:
        with open_text(path) as text:
            for line in text:
                if bare := line.rstrip("\n").strip():
                    lines.append(_lowered(bare) if lowered and draw() < lowered else bare)
                elif lines:
                    yield "\n".join(lines)
                    lines = []
        if lines:
            yield "\n".join(lines)
            lines = []


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
            name: _encoded(name, files[split][name], tokenizer, lowered if split == "train" else 0.0, checksums, cache)
            for name in sorted(files[split])
        }
        for split in files
    }
    named = {f"{Path(path).parent.name}/{Path(path).name}": digest for path, digest in checksums.items()}
    return DocumentCorpus(tokenizer, splits["train"], splits["valid"], named)


def repeats(sources: Mapping[str, Documents], power: float, most: float) -> dict[str, float]:
    """Return how often an epoch repeats each source: in proportion to words^(power - 1), 1 on average over all pieces.

    At most `most` times, and once at most where it is TEMPLATED.
    """
    bounds = {name: 1.0 if name in TEMPLATED else most for name in sources}
    raw = {name: max(part.words, 1) ** (power - 1) for name, part in sources.items()}
    sizes = {name: len(part.ids) for name, part in sources.items()}
    total = sum(sizes.values())

    def bounded(factor: float) -> dict[str, float]:
        return {name: min(factor * raw[name], bounds[name]) for name in sources}

    low, high = 0.0, most / min(raw.values())
    for _ in range(100):
        middle = (low + high) / 2
        repeated = sum(sizes[name] * count for name, count in bounded(middle).items())
        low, high = (middle, high) if repeated < total else (low, middle)
    return bounded(high)


def epoch_stream(sources: Mapping[str, Documents], counts: Mapping[str, float], seed: int, epoch: int) -> PieceIds:
    """Return all documents of an epoch, shuffled, as one array; the draws depend on `seed` and `epoch` alone.

    Source s is read counts[s] times: a fraction is that share of its documents.
    """
    names = sorted(sources)
    chosen = []
    for at, name in enumerate(names):
        number = len(sources[name].starts) - 1
        whole, rest = divmod(counts[name], 1.0)
        part = np.random.default_rng([seed, epoch, at]).permutation(number)[: round(rest * number)]
        drawn = np.concatenate([np.tile(np.arange(number), int(whole)), part])
        chosen.append(np.stack([np.full(len(drawn), at), drawn], 1))  # (documents, 2): source, document
    order = np.concatenate(chosen)
    np.random.default_rng([seed, epoch]).shuffle(order)
    starts = [sources[name].starts.tolist() for name in names]
    texts = [np.asarray(sources[name].ids) for name in names]
    return np.concatenate([texts[s][starts[s][d] : starts[s][d + 1]] for s, d in order.tolist()])


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


def _encoded(
    name: str,
    paths: Sequence[Path],
    tokenizer: SubwordTokenizer,
    lowered: float,
    checksums: Mapping[str, str],
    cache: Path,
) -> Documents:
    key = [_VERSION, name, [checksums[str(path)] for path in paths], tokenizer.sha256, lowered]
    folder = cache / "documents" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    if not folder.is_dir():
        _write(folder, documents(name, paths, lowered), tokenizer)
    counts = json.loads((folder / "counts.json").read_text())
    starts = np.fromfile(folder / "starts.int64", np.int64)
    ids = np.memmap(folder / "ids.uint16", np.uint16, "r") if starts[-1] else np.empty(0, np.uint16)
    return Documents(ids, starts, **counts)


def _write(folder: Path, texts: Iterable[str], tokenizer: SubwordTokenizer) -> None:
    """Fill a new `folder`; it appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent))
    starts, size, words = array("q", [0]), 0, 0
    try:
        with (staging / "ids.uint16").open("wb") as stream:
            for text in texts:
                ids = array("H", [tokenizer.document, *tokenizer.ids(text)])
                ids.tofile(stream)
                starts.append(starts[-1] + len(ids))
                size += len(text.encode()) + 1
                words += len(text.split())
        (staging / "starts.int64").write_bytes(starts.tobytes())
        (staging / "counts.json").write_text(json.dumps({"size": size, "words": words}))
        staging.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first with the same content
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
