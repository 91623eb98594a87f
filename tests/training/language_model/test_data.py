"""Corpora: read once, checked, tokenised into arrays on disk; what is wrong with a file is said with its name."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest

from app.errors import CorpusError
from app.text.whitespace import Whitespace
from app.text.words import lines, sentences
from training.corpora.files import open_text
from training.language_model import data as texts
from training.language_model.data import SPLITS, Corpus, Source

PTB = Path(os.environ.get("TEST_DATA", Path(__file__).parents[4] / "shared" / "data")) / "ptb"
TEXTS = {"train": "b a a\na c <unk>\n\nb\n", "valid": "a b\n", "test": "c d\na"}

Load = Callable[..., Corpus]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load the texts given by split, TEXTS for the others."""

    def load(vocabulary_size: int = 100, ending: str = ".txt", **contents: bytes) -> Corpus:
        return texts.load(written(tmp_path, contents, ending), vocabulary_size, cache=tmp_path / "cache")

    return load


def written(folder: Path, contents: dict[str, bytes], ending: str = ".txt") -> Source:
    contents = {split: text.encode() for split, text in TEXTS.items()} | contents
    files = {split: folder / f"{split}{ending}" for split in contents}
    for split, path in files.items():
        path.write_bytes(contents[split])
    return Source("letters", files, "free")


def words(corpus: Corpus, split: str) -> list[str]:
    return [corpus.vocabulary.tokens[token] for token in getattr(corpus, split)]


def test_every_line_is_a_sentence_ended_by_eos(load: Load) -> None:
    corpus = load()
    assert words(corpus, "train") == ["b", "a", "a", "<eos>", "a", "c", "<unk>", "<eos>", "<eos>", "b", "<eos>"]
    assert words(corpus, "valid") == ["a", "b", "<eos>"]
    assert words(corpus, "test") == ["c", "<unk>", "<eos>", "a", "<eos>"]


def test_the_vocabulary_is_ordered_by_frequency_then_by_name(load: Load) -> None:
    assert load().vocabulary.tokens == ("<eos>", "a", "b", "<unk>", "c")
    assert load(train=b"a a b <unk> <unk> <unk>").vocabulary.tokens == ("<unk>", "a", "<eos>", "b")


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        (2, ("<eos>", "<unk>")),
        (3, ("<eos>", "a", "<unk>")),
        (4, ("<eos>", "a", "b", "<unk>")),
        (5, ("<eos>", "a", "b", "<unk>", "c")),
    ],
)
def test_a_vocabulary_keeps_the_most_frequent_tokens_and_reads_the_others_as_unknown(
    load: Load, size: int, tokens: tuple[str, ...]
) -> None:
    corpus = load(size)
    assert corpus.vocabulary.tokens == tokens
    assert words(corpus, "test") == [t if t in tokens else "<unk>" for t in ("c", "d", "<eos>", "a", "<eos>")]


@pytest.mark.parametrize("size", [1, 0, -3])
def test_a_vocabulary_without_room_for_the_special_tokens_is_rejected(load: Load, size: int) -> None:
    with pytest.raises(CorpusError, match=f"vocabulary_size: expected at least 2, found {size}"):
        load(size)


def test_windows_line_ends_change_nothing(load: Load) -> None:
    plain = load()
    dos = load(**{split: text.replace("\n", "\r\n").encode() for split, text in TEXTS.items()})
    assert dos.vocabulary.tokens == plain.vocabulary.tokens
    assert all(words(dos, split) == words(plain, split) for split in SPLITS)


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_sentences_end_where_the_server_ends_them(load: Load, ending: str) -> None:
    text = "a b\rc\r\nd\n\r\x0be\x0cf\x85g\u2028h"
    contents = dict.fromkeys(SPLITS, text.encode())
    if ending == ".txt.gz":
        contents = {split: gzip.compress(content) for split, content in contents.items()}
    corpus = load(ending=ending, **contents)
    server = Whitespace(corpus.vocabulary)
    expected = [token.text for sentence in sentences(lines(text), server) for token in sentence]
    assert words(corpus, "train") == expected
    assert expected == "a b <eos> c <eos> d <eos> <eos> e f g h <eos>".split()


def test_gzipped_texts_are_read_as_they_are(load: Load) -> None:
    plain = load()
    zipped = load(ending=".txt.gz", **{split: gzip.compress(text.encode()) for split, text in TEXTS.items()})
    assert all(words(zipped, split) == words(plain, split) for split in SPLITS)


def test_a_corpus_is_tokenised_once_and_mapped_from_disk(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> AbstractContextManager[TextIO]:
        read.append(path)
        return open_text(path)

    monkeypatch.setattr(texts, "open_text", counted)
    first = load()
    assert {path.name for path in read} == {"train.txt", "valid.txt", "test.txt"}
    read.clear()
    second = load()
    assert read == []
    for split in SPLITS:
        one, other = getattr(first, split), getattr(second, split)
        assert isinstance(other, np.memmap)
        assert other.filename == one.filename
        assert not other.flags.writeable
    load(vocabulary_size=3)
    assert read, "another vocabulary needs other arrays"


def test_tokenizers_of_the_same_size_have_arrays_of_their_own(tmp_path: Path) -> None:
    source = written(tmp_path, {})
    one, other = (
        texts.load(replace(source, normalisation=name), 100, cache=tmp_path / "cache") for name in ("whitespace", "ptb")
    )
    for split in SPLITS:
        assert getattr(one, split).filename != getattr(other, split).filename


def test_a_changed_text_is_tokenised_anew(load: Load) -> None:
    load()
    assert words(load(valid=b"c c\n"), "valid") == ["c", "c", "<eos>"]


def test_checksums_are_those_of_the_raw_files(load: Load) -> None:
    assert load().sha256 == {split: hashlib.sha256(text.encode()).hexdigest() for split, text in TEXTS.items()}


@pytest.mark.parametrize(
    ("split", "content", "ending", "message"),
    [
        ("train", b"", ".txt", "expected text, found none"),
        ("valid", b"\n \n", ".txt", "expected text, found none"),
        ("test", b"a\nb\xff\n", ".txt", "expected UTF-8, found byte 0xff"),
        ("train", "ä".encode("latin-1"), ".txt", "expected UTF-8, found byte 0xe4"),
        ("valid", b"a b\n", ".gz", "expected gzip"),
        ("test", gzip.compress(b"a b\n" * 1000, mtime=0)[:-9], ".gz", "expected gzip"),
        ("train", gzip.compress(b"a b\n", mtime=0)[:-8] + bytes(8), ".gz", "expected gzip"),
        ("train", gzip.compress(b"a b\n", mtime=0)[:10] + b"\xff" * 20, ".gz", "expected gzip"),
    ],
)
def test_a_file_that_is_no_text_is_rejected_by_name_and_leaves_nothing(
    load: Load, tmp_path: Path, split: str, content: bytes, ending: str, message: str
) -> None:
    others = {name: gzip.compress(text.encode()) for name, text in TEXTS.items()} if ending == ".gz" else {}
    with pytest.raises(CorpusError, match=f"{re.escape(str(tmp_path / split))}{ending}: {message}"):
        load(ending=ending, **others | {split: content})
    assert list((tmp_path / "cache" / "corpora").iterdir()) == []


@pytest.mark.parametrize("split", SPLITS)
def test_a_missing_file_is_rejected_by_name(tmp_path: Path, split: str) -> None:
    source = written(tmp_path, {})
    source.files[split].unlink()
    with pytest.raises(CorpusError, match=f"{re.escape(str(tmp_path / split))}.txt: can't be read: No such file"):
        texts.load(source, 100, cache=tmp_path / "cache")


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    source = written(tmp_path, {})
    with pytest.raises(CorpusError, match="can't be read: Is a directory"):
        texts.load(replace(source, files=source.files | {"valid": tmp_path}), 100, cache=tmp_path / "cache")


# the Penn Treebank


@pytest.fixture
def treebank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three files that pass for the Penn Treebank."""
    folder = tmp_path / "treebank"
    folder.mkdir()
    for split, text in TEXTS.items():
        (folder / f"ptb.{split}.txt").write_text(text)
        monkeypatch.setitem(texts.PTB_SHA256, f"ptb.{split}.txt", hashlib.sha256(text.encode()).hexdigest())
    return folder


def test_the_penn_treebank_names_its_terms_and_its_conventions(treebank: Path) -> None:
    source = texts.penn_treebank(treebank)
    assert (source.name, source.normalisation) == ("ptb", "ptb")
    assert "Linguistic Data Consortium" in source.terms
    assert "Wall Street Journal articles of 1989" in source.caveats[0]
    assert "`N` stands for any number" in source.caveats[1]
    assert source.files == {split: treebank / f"ptb.{split}.txt" for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_a_penn_treebank_with_one_other_byte_is_rejected(treebank: Path, split: str) -> None:
    path = treebank / f"ptb.{split}.txt"
    expected = texts.PTB_SHA256[path.name]
    content = bytearray(path.read_bytes())
    content[1] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(CorpusError) as refusal:
        texts.penn_treebank(treebank)
    assert str(refusal.value) == f"{path}: expected the Penn Treebank's sha256 {expected}, found {found}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def downloads(treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that downloads come from: a server of this machine's own."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=treebank)) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])  # looks that often whether to stop
        thread.start()
        monkeypatch.setattr(texts, "PTB_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(texts, "CACHE", tmp_path / "cache")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield treebank
        server.shutdown()
        thread.join()


def test_the_penn_treebank_is_downloaded_once(downloads: Path) -> None:
    files = texts.penn_treebank(None).files
    assert {split: path.read_text() for split, path in files.items()} == TEXTS
    for path in downloads.iterdir():
        path.unlink()
    assert texts.penn_treebank(None).files == files


def test_a_download_of_other_bytes_is_rejected(downloads: Path) -> None:
    (downloads / "ptb.valid.txt").write_text("something else")
    with pytest.raises(CorpusError, match=r"ptb\.valid\.txt"):
        texts.penn_treebank(None)


def test_without_a_network_the_download_fails_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    monkeypatch.setattr(texts, "PTB_URL", url)
    monkeypatch.setattr(texts, "CACHE", tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(CorpusError, match=f"^{url}: can't be downloaded: .*refused.*$") as refusal:
        texts.penn_treebank(None)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(not PTB.is_dir(), reason="the Penn Treebank is not here: TEST_DATA names no folder with it")
def test_the_real_penn_treebank_has_its_published_size(tmp_path: Path) -> None:
    corpus = texts.load(texts.penn_treebank(PTB), 10_000, cache=tmp_path)
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (929_589, 73_760, 82_430)
    assert len(corpus.vocabulary) == 10_000
    assert int(corpus.train.max()) == 9_999
    assert words(corpus, "test")[:8] == ["no", "it", "was", "n't", "black", "monday", "<eos>", "but"]
