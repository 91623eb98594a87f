"""Documents are read whole from every folder, encoded once, weighted by source, and shuffled by seed and epoch."""

import lzma
from pathlib import Path

import numpy as np
import pytest

from app.errors import CorpusError
from app.text.subword import SubwordTokenizer
from training.corpora.documents import Documents, documents, epoch_stream, load, register_of, repeats, text_files
from training.language_model.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    (first / "sms.train.txt").write_text("Hi there.\nSee you\n\n\nOK.\n")
    (first / "sms.valid.txt").write_text("Café?\nYes.\n\nNo.\n", encoding="utf-8")
    with lzma.open(second / "sms.train.txt.xz", "wt") as text:
        text.write("Later\n\n")
    (second / "SOURCE.md").write_text("no text")
    return [first, second]


@pytest.fixture(scope="module")
def tokenizer(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> SubwordTokenizer:
    return train_tokenizer(folders, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json", pieces=280, every=1)


def source(documents: int, length: int = 3, first: int = 0) -> Documents:
    """Documents whose ids count up, so that an id is its index."""
    ids = np.arange(first, first + documents * length, dtype=np.uint16)
    return Documents(ids, np.arange(0, documents * length + 1, length, dtype=np.int64), 0, documents)


def test_blank_lines_end_documents_and_folders_add_up(folders: list[Path]) -> None:
    files = text_files(folders)["train"]
    assert list(documents("sms", files["sms"])) == ["Hi there.\nSee you", "OK.", "Later"]


def test_a_folder_without_texts_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"expected NAME\.train\.txt"):
        text_files([tmp_path, tmp_path / "none"])


def test_lowered_lines_lose_capitals_and_the_full_stop(tmp_path: Path) -> None:
    path = tmp_path / "a.train.txt"
    path.write_text("Hi There.\n" * 1000 + "Well...\n")
    lines = next(documents("a", [path], lowered=0.1)).split("\n")
    assert 50 < lines.count("hi there") < 150
    assert lines.count("hi there") + lines.count("Hi There.") == 1000
    assert next(documents("a", [path], lowered=1.0)).split("\n")[-1] == "well..."
    assert next(documents("a", [path], lowered=0.1)).split("\n") == lines


def test_documents_are_encoded_with_their_start_and_mapped_the_next_time(
    folders: list[Path], tokenizer: SubwordTokenizer, tmp_path: Path
) -> None:
    corpus = load(folders, tokenizer, lowered=0.0, cache=tmp_path)
    part = corpus.train["sms"]
    texts = [part.ids[start:end].tolist() for start, end in zip(part.starts, part.starts[1:], strict=False)]
    assert [ids[0] for ids in texts] == [tokenizer.document] * 3
    assert [tokenizer.decode(ids) for ids in texts] == ["Hi there.\nSee you", "OK.", "Later"]
    assert part.words == 6
    assert corpus.valid["sms"].size == len("Café?\nYes.\nNo.\n".encode())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = load(folders, tokenizer, lowered=0.0, cache=tmp_path)
    assert again.train["sms"].ids.tolist() == part.ids.tolist()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert again.sha256 == corpus.sha256
    assert len(corpus.sha256) == 3


def test_sources_repeat_in_proportion_but_bounded() -> None:
    sources = {"large": source(4000), "small": source(400), "tiny": source(4), "sgd": source(40)}
    counts = repeats(sources, 0.7, 2.0)
    assert counts["small"] / counts["large"] == pytest.approx(10**0.3)
    assert counts["tiny"] == 2.0
    assert counts["sgd"] == 1.0
    total = sum(len(part.ids) for part in sources.values())
    assert sum(len(part.ids) * counts[name] for name, part in sources.items()) == pytest.approx(total)
    assert repeats(sources, 1.0, 2.0) == pytest.approx(dict.fromkeys(sources, 1.0))


def test_an_epoch_reads_each_document_as_often_as_its_source_asks() -> None:
    sources = {"a": source(10), "b": source(10, first=1000)}
    stream = epoch_stream(sources, {"a": 2.0, "b": 0.5}, seed=1, epoch=0)
    found = stream.reshape(-1, 3)
    assert (np.diff(found.astype(int)) == 1).all()  # documents are whole
    assert sorted(found[found[:, 0] < 1000][:, 0].tolist()) == sorted([3 * k for k in range(10)] * 2)
    assert len(set(found[found[:, 0] >= 1000][:, 0].tolist())) == len(found) - 20 == 5
    assert epoch_stream(sources, {"a": 2.0, "b": 0.5}, seed=1, epoch=0).tolist() == stream.tolist()
    assert epoch_stream(sources, {"a": 2.0, "b": 0.5}, seed=1, epoch=1).tolist() != stream.tolist()


def test_registers() -> None:
    assert register_of("dailydialog") == "chat"
    assert register_of("my-own") == "my-own"
