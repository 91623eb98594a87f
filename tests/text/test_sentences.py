import tracemalloc
from collections.abc import Iterator

import pytest

from app.text.penn_treebank import PennTreebank
from app.text.whitespace import Whitespace
from app.text.words import BLANK, PAUSE, WINDOW, Vocabulary, Word, context, lines, sentences, windows


@pytest.fixture(scope="module")
def whitespace() -> Whitespace:
    return Whitespace(Vocabulary(["<eos>", "<unk>", "The", "Then", "the"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a", [("a", 0)]),
        ("a\n", [("a", 0)]),
        ("a\nb", [("a", 0), ("b", 2)]),
        ("a\r\nb\rc\n", [("a", 0), ("b", 3), ("c", 5)]),
        ("\n\na", [("", 0), ("", 1), ("a", 2)]),
        ("a\r\r\n", [("a", 0), ("", 2)]),
        ("a\u2028b\x0bc\x85d", [("a\u2028b\x0bc\x85d", 0)]),
    ],
)
def test_only_carriage_returns_and_line_feeds_break_lines(text: str, expected: list[tuple[str, int]]) -> None:
    assert list(lines(text)) == expected


def test_each_sentence_ends_with_its_line(whitespace: Whitespace) -> None:
    found = [list(sentence) for sentence in sentences(lines("The cat\r\nsat"), whitespace)]
    assert found == [
        [Word("The", 0, 3), Word("cat", 4, 7), Word("<eos>", 7, 7)],
        [Word("sat", 9, 12), Word("<eos>", 12, 12)],
    ]


def test_sentences_are_read_one_at_a_time(whitespace: Whitespace) -> None:
    endless = (("the", 4 * number) for number in iter(int, 1))
    assert list(next(sentences(endless, whitespace))) == [Word("the", 0, 3), Word("<eos>", 3, 3)]


def test_a_blank_line_is_a_sentence_where_the_corpus_keeps_it(whitespace: Whitespace, penn: PennTreebank) -> None:
    text = "the\n \n--\nthe"
    assert [len(list(sentence)) for sentence in sentences(lines(text), whitespace)] == [2, 1, 2, 2]
    assert [len(list(sentence)) for sentence in sentences(lines(text), penn)] == [2, 2]


def test_blank_lines_are_skipped_on_request() -> None:
    assert list(lines(" \n\t\r\n the \r\r\n \nbank\n ", blank=False)) == [("the ", 6), ("bank", 15)]
    assert list(lines(" \n" * 1_000_000 + "the", blank=False)) == [("the", 2_000_000)]


def test_many_lines_without_words_yield_blank(penn: PennTreebank) -> None:
    read = list[int]()

    def wordless() -> Iterator[tuple[str, int]]:
        for offset in range(0, 20_000, 2):
            read.append(offset)
            yield "-", offset
        yield "the", 20_000

    found = sentences(wordless(), penn)
    assert next(found) is BLANK
    assert len(read) < 100
    assert [list(sentence) for sentence in found if sentence is not BLANK] == [
        [Word("the", 20_000, 20_003), Word("<eos>", 20_003, 20_003)]
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("the", ["the"]),
        ("the company ", ["the", "company"]),
        ("the\nbank", ["the", "<eos>", "bank"]),
        ("the\n", ["the", "<eos>"]),
        ("the\n ", ["the", "<eos>"]),
        ("the\r\n\r\n", ["the", "<eos>"]),
    ],
)
def test_the_last_sentence_of_a_context_is_unfinished(penn: PennTreebank, text: str, expected: list[str]) -> None:
    assert [token.text for token in context(text, penn)] == expected


def test_white_space_tokens_are_the_chunks_as_they_are(whitespace: Whitespace) -> None:
    assert list(whitespace.tokens(" The\u00a0\tcafé ,", 10)) == [
        Word("The", 11, 14),
        Word("café", 16, 20),
        Word(",", 21, 22),
    ]
    assert whitespace.join(["The", "'s", "$", "N"]) == "The 's $ N"


@pytest.mark.parametrize(
    "text", ["", "a", "a b", "one two  three\u2003four", "  ", "abc" * 9 + " d", " " * 20 + "word"]
)
def test_windows_cut_no_word(text: str) -> None:
    parts = [text[start:end] for start, end in windows(text, 4)]
    assert "".join(parts) == text
    assert [word for part in parts for word in part.split()] == text.split()
    assert all(len(part) >= 4 for part in parts[:-1])


def test_a_long_line_of_few_words_returns_control_between_them() -> None:
    penn = PennTreebank(Vocabulary(["<eos>", "<unk>", "the", "company"]))
    line = "the" + " \u00a7" * WINDOW + " company" + " " * 3 * WINDOW
    found = list(penn.tokens(line, 7))
    at = 7 + line.index("company")
    assert [word for word in found if word is not PAUSE] == [Word("the", 7, 10), Word("company", at, at + 7)]
    assert found.count(PAUSE) == len(list(windows(line))) - 1 == 5
    assert [token and token.text for token in penn.encode(line) if token] == ["the", "company"]
    assert [word.text for word in context(line, penn)] == ["the", "company"]


def test_a_long_run_of_signs_takes_little_memory() -> None:
    penn = PennTreebank(Vocabulary(["<eos>", "<unk>", "the"]))
    line = "the " + "-" * 2**20
    tracemalloc.start()
    assert list(penn.tokens(line)) == [Word("the", 0, 3)]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u2009", "\u3000"])
def test_any_space_ends_a_chunk(space: str) -> None:
    penn = PennTreebank(Vocabulary(["<eos>", "<unk>", "'", "the"]))
    assert list(penn.tokens(f"\u2019{space}the")) == [Word("the", 2, 5)]


def test_a_long_line_without_words_is_no_sentence() -> None:
    penn = PennTreebank(Vocabulary(["<eos>", "<unk>", "the"]))
    found = list(sentences(lines("\u00a7 " * WINDOW + "\nthe", blank=False), penn))
    assert [list(sentence) for sentence in found if sentence is not BLANK] == [
        [Word("the", 2 * WINDOW + 1, 2 * WINDOW + 4), Word("<eos>", 2 * WINDOW + 4, 2 * WINDOW + 4)]
    ]
    assert BLANK in found
