"""Documents are read whole from every folder, encoded once and in chunks, and mapped."""

import lzma
import random
from itertools import accumulate, chain
from pathlib import Path

import pytest

from app.errors import CorpusError
from app.text.subword import SubwordTokenizer
from training.corpora.documents import documents, load, parts, register_of, text_files
from training.corpora.parallel import CHUNK
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


def test_the_parts_of_a_long_document_are_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.train.txt"
    path.write_text("aa\nbb\ncc\n\ndd\nee\n\n\nff\ngg\nhh")
    assert list(parts("a", [path], 0.0, 4)) == [
        ("aa\nbb", False),
        ("cc", True),
        ("dd\nee", False),
        ("ff\ngg", False),
        ("hh", True),
    ]
    assert list(documents("a", [path])) == ["aa\nbb\ncc", "dd\nee", "ff\ngg\nhh"]


def test_texts_of_many_chunks_are_encoded_by_processes_as_by_one_loop(
    tokenizer: SubwordTokenizer, tmp_path: Path
) -> None:
    draw = random.Random(1)
    lines = [" ".join(draw.choices(["Hi.", "café", "OK", "<email>"], k=12)) + "\n" for _ in range(999)]
    with (tmp_path / "mine.train.txt").open("w", encoding="utf-8") as text:
        for size in (20_000, 40, 3, 180_000, 1):  # lines of a document; the fourth has several chunks
            text.writelines([*draw.choices(lines, k=size), "\n"])
    corpus = load([tmp_path], tokenizer, lowered=0.1, cache=tmp_path / "cache")
    whole = list(documents("mine", [tmp_path / "mine.train.txt"], lowered=0.1))
    expected = [[tokenizer.document, *tokenizer.ids(document)] for document in whole]
    part = corpus.train["mine"]
    assert len(whole[3]) > 8 * CHUNK
    assert part.ids.tolist() == list(chain.from_iterable(expected))
    assert part.starts.tolist() == [0, *accumulate(map(len, expected))]
    assert part.size == sum(len(document.encode()) + 1 for document in whole)
    assert part.words == sum(len(document.split()) for document in whole)


def test_registers() -> None:
    assert register_of("dailydialog") == "chat"
    assert register_of("my-own") == "my-own"
