"""Pieces are those of the library, any text comes back, and spans cover it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.errors import BundleError, CorpusError
from app.text.subword import SPECIALS, SubwordTokenizer, spaced
from training.language_model.tokenizer import train_tokenizer

LINES = "Thanks for your help, I don't know.\nsee you at 10:30, isn't it? <email>\nÉcole — “naïve” 12345 <url> 🙂\n"
AWKWARD = [
    "\n",
    " ",
    "  ",
    "\r\n",
    "'",
    "don't",
    " I'm",
    "<email>",
    " <url>",
    "<doc",
    "1234567",
    "e\u0301",
    "👩‍👩‍👧",
    "\u3000",
]
AWKWARD += ["a" * 70, " " * 70, "-" * 130, "a'b'c'd'e'f'g", "\u200b", "\x00", "\ufeff", "日本語", "हिन्दी"]

plain = st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=8)), max_size=12).map("".join)
surrogates = st.text(st.characters(exclude_categories=[]), max_size=12)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "mail.train.txt").write_text(LINES * 20, encoding="utf-8")
    train_tokenizer([folder], folder / "tokenizer.json", pieces=340, every=1)
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> SubwordTokenizer:
    return SubwordTokenizer.read(path)


@pytest.fixture(scope="module")
def library(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


@settings(max_examples=100, deadline=None)
@given(text=plain.filter(lambda text: "<doc>" not in text))
def test_pieces_are_the_librarys(text: str, tokenizer: SubwordTokenizer, library: Tokenizer) -> None:
    assert tokenizer.ids(text) == library.encode(spaced(text), add_special_tokens=False).ids


@settings(max_examples=100, deadline=None)
@given(text=st.one_of(plain, surrogates))
def test_any_text_comes_back_and_spans_cover_it(text: str, tokenizer: SubwordTokenizer) -> None:
    for inside_line in (False, True):
        assert tokenizer.decode(tokenizer.ids(text, inside_line=inside_line), inside_line=inside_line) == text
    tokens = list(tokenizer.encode(text, 7))
    assert [token.id for token in tokens] == tokenizer.ids(text)
    assert [token.start for token in tokens] == [7, *(token.end for token in tokens)][: len(tokens)]
    assert (tokens[-1].end if tokens else 7) == 7 + len(text)
    assert all(token.start <= token.end for token in tokens)
    end = len(text), len(text)
    assert [(token.id, token.start, token.end) for token in tokenizer.encode(text, ended=True)][len(tokens) :] == (
        [(tokenizer.end, *end)] if text else []
    )


def test_a_words_span_is_its_characters(tokenizer: SubwordTokenizer) -> None:
    text = "See the 🙂, naïve"
    words = ["".join(text[span.start : span.end] for span in tokenizer.encode(text))]
    assert words == [text]
    (first, *_) = tokenizer.encode("don't")
    assert (first.start, first.end) == (0, 5)


def test_contractions_are_whole_and_a_lines_first_word_is_as_inside_it(tokenizer: SubwordTokenizer) -> None:
    don_t = tokenizer.ids("I don't")[-1]
    assert tokenizer.pieces[don_t] == b" don't"
    assert tokenizer.ids("don't") == [don_t]
    assert tokenizer.ids("x\ndon't")[-1] == don_t
    assert tokenizer.ids(" don't", inside_line=True) == [don_t]


def test_placeholders_are_single_pieces_and_no_text_is_a_document(tokenizer: SubwordTokenizer) -> None:
    assert tokenizer.ids("<email>") == [SPECIALS.index(" <email>")]
    assert SPECIALS.index("<url>") in tokenizer.ids("(<url>)")
    assert tokenizer.document not in tokenizer.ids("a <doc> b")
    assert {tokenizer.pieces[number].strip() for number in range(1, len(SPECIALS))} == {
        *(name.strip().encode() for name in SPECIALS[1:])
    }


def test_bytes_that_are_no_text_are_replaced(tokenizer: SubwordTokenizer) -> None:
    (half, *_) = tokenizer.ids("\u00ff", inside_line=True)
    assert tokenizer.decode([half], inside_line=True) == "\ufffd"


@pytest.mark.parametrize("content", ["", "{}", "[]", "no JSON"])
def test_another_file_is_rejected(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match="expected a byte-level BPE"):
        SubwordTokenizer.read(tmp_path / "tokenizer.json")
    with pytest.raises(BundleError, match="can't be read"):
        SubwordTokenizer.read(tmp_path / "none.json")


def test_another_pre_tokenizer_is_rejected(path: Path) -> None:
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "."
    with pytest.raises(ValueError, match="another pre-tokenizer"):
        SubwordTokenizer.parse(json.dumps(content))


def test_the_digest_is_of_the_pieces_and_ranks(tokenizer: SubwordTokenizer, path: Path) -> None:
    assert SubwordTokenizer.read(path).sha256 == tokenizer.sha256
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    assert SubwordTokenizer.parse(json.dumps(content)).sha256 != tokenizer.sha256


def test_a_vocabulary_below_the_bytes_is_rejected(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="pieces: expected 267 or more, found 200"):
        train_tokenizer([path.parent], tmp_path / "tokenizer.json", pieces=200)
