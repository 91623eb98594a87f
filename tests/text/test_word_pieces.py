"""The context of the next word and the constraint of a partly typed one, over the pieces of a subword tokenizer."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.subword import SubwordTokenizer
from app.text.word_pieces import SubwordPrefix
from tests.text.subwords import subword_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    return subword_tokenizer()


def words(tokenizer: SubwordTokenizer, prefix: SubwordPrefix, tokens: tuple[int, ...] = ()) -> Iterator[str]:
    """Every word of at most two pieces that fits."""
    following = prefix.following(tokens)
    assert following.ids is not None
    covers = following.covers
    for at, token in enumerate(following.ids[following.places].tolist()):
        longer = (*tokens, token)
        if (covers is None or covers[at]) and (text := prefix.text(longer)) is not None:
            yield text
        if covers is not None and len(longer) < 2:
            yield from words(tokenizer, prefix, longer)


@pytest.mark.parametrize("text", [" " * 64_000 + "a", "e" + "\u0301\u0323" * 16_000], ids=["spaces", "marks"])
def test_no_context_takes_quadratic_time(tokenizer: SubwordTokenizer, text: str) -> None:
    started = time.process_time()
    tokenizer.prefix(text, complete=False)
    assert time.process_time() - started < 0.5  # seconds; it takes a twentieth, else twice as long


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("", ""),
        ("I", " I"),
        ("I ", " I"),
        ("I  \t", " I"),
        ("I\n", " I\n"),
        ("I\n ", " I\n"),
        ("I\r\nI", " I\n I"),
        ("don\u2019t", " don't"),
        ("don`t ", " don't"),
        ("I\u200bsn\u00adt", " I snt"),
        ("the \u200bend\u200b", " the end"),
        ("don&#39;t &amp;amp; I\u055am ", " don't & I'm"),
        ("``the'' \u201cend\u201d\u2026 ", ' "the" "end"...'),
        ("the\u00a0end\r", " the end\n"),
        ("The end.New is,and I.The www.a.The ", " The end. New is, and I.The www.a.The"),
        ("cafe\u0301 ", " caf\u00e9"),
    ],
)
def test_the_context_ends_before_the_space_of_the_next_word(
    tokenizer: SubwordTokenizer, text: str, context: str
) -> None:
    ids = tokenizer.prefix(text, complete=False).ids
    assert b"".join(tokenizer.pieces[number] for number in ids).decode() == context


@pytest.mark.parametrize(
    ("text", "context", "expected"),
    [
        ("the", "", {"the", "then", "there", "The", "They"}),
        ("The", "", {"The", "Then", "There", "They"}),
        ("THE", "", {"THE", "THEN", "THERE", "THEY"}),
        ("I don", " I", {"don't", "done"}),
        ("ill", "", {"I'll", "ill", "illness"}),
        ("i'", "", {"I'm", "I'll"}),
        ("I\u2019", "", {"I\u2019m", "I\u2019ll"}),
        ("isn`", "", {"isn`t"}),
        ("New y", " New", {"York", "Y", "you", "your"}),
        ("New Y", " New", {"York", "Y", "You", "Your"}),
        ("2", "", {"2", "20"}),
        ("katar", "", {"Katarzyna"}),
    ],
)
def test_completions_in_the_writers_case(
    tokenizer: SubwordTokenizer, text: str, context: str, expected: set[str]
) -> None:
    prefix = tokenizer.prefix(text, complete=True)
    assert b"".join(tokenizer.pieces[number] for number in prefix.ids).decode() == context
    found = set(words(tokenizer, prefix))
    assert expected <= found
    assert all(
        word.replace("'", "").casefold().startswith(text.split()[-1].strip("'\u2019`").casefold()) for word in found
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I (t", "(the"),
        ("end,", "end, the"),
        ("end,th", "end,the"),
        ("end.Th", "end.The"),
        ("the\u200byo", "the\u200byou"),
        ('"th', '"the'),
        ("well-k", "well-known"),
    ],
)
def test_a_word_after_a_sign_keeps_the_sign(tokenizer: SubwordTokenizer, text: str, expected: str) -> None:
    assert expected in set(words(tokenizer, tokenizer.prefix(text, complete=True)))


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("", True),
        ("It is. ", True),
        ("It is!\u201d ", True),
        ("It is.\n", True),
        ("- ", True),
        ('It is. "', True),
        ("It is, ", False),
        ("Mr. ", False),
        ("e.g. ", False),
        ("J. ", False),
        ("It is", False),
    ],
)
def test_the_first_word_of_a_sentence_has_a_capital(tokenizer: SubwordTokenizer, text: str, begins: bool) -> None:
    prefix = tokenizer.prefix(text, complete=False)
    assert prefix.text(tokenizer.ids(" then", inside_line=True)) == ("Then" if begins else "then")


def test_bytes_and_words_of_other_pieces_are_no_words(tokenizer: SubwordTokenizer) -> None:
    prefix = tokenizer.prefix("I ", complete=False)
    assert prefix.text(tokenizer.ids(" you.", inside_line=True)) is None
    assert prefix.text(tokenizer.ids("\u00e9", inside_line=True)[:1]) is None
    the = tokenizer.pieces.index(b" the")
    n = tokenizer.pieces.index(b"n")
    assert prefix.text([the]) == "the"
    assert prefix.text([the, n]) is None  # " then" is one piece


@settings(max_examples=200, deadline=None)
@given(st.text(st.one_of(st.sampled_from(" \n'\u2019.,\"(-IthedonY2"), st.characters())), st.booleans())
def test_every_text_has_a_prefix(text: str, complete: bool) -> None:
    tokenizer = subword_tokenizer()
    prefix = tokenizer.prefix(text, complete=complete)
    following = prefix.following(())
    assert following.ids is not None
    assert len(following.ids[following.places])
    if following.covers is not None:
        assert len(following.covers) == len(following.ids[following.places])


def test_a_space_at_the_end_of_a_line_is_part_of_the_context(tokenizer: SubwordTokenizer) -> None:
    assert tokenizer.prefix("well. \n", complete=False).ids == tokenizer.ids("well. \n")
    assert tokenizer.prefix("well.\n \u3000", complete=False).ids == tokenizer.ids("well.\n")
