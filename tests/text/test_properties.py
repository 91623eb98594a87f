"""Properties of any text."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.text.characters import APOSTROPHES, SEPARATORS, unescaped, unescaped_characters
from app.text.penn_treebank import PennTreebank
from app.text.whitespace import Whitespace
from app.text.words import Vocabulary, Word, WordTokenizer, context, context_texts, lines, sentences

settings.register_profile("text", deadline=None, derandomize=True, max_examples=300)
anything = settings.get_profile("text")

# Unicode at large, lone surrogates and all, and the characters that the rules are about.
CHUNKS = st.one_of(
    st.text(st.characters(), max_size=20),
    st.text(
        st.sampled_from("aNsSntmUus.,'\u2019-/\\&$#\u00a3019%:\u00bd\u2026\u2014\u0301\u200b\ufb01\u3382@<>kK\u4f60"),
        max_size=20,
    ),
)
LINES = st.lists(CHUNKS, max_size=5).map(" ".join)
SPACES = st.sampled_from([" ", "\t", "\u00a0", "\u2028", "  "])


def texts(tokens: Iterable[Word]) -> list[str]:
    return [token.text for token in tokens]


@anything
@given(LINES)
@example("\ud800\0\u0301\U0001f389")
def test_offsets_are_ordered_and_within_their_chunk(penn: PennTreebank, line: str) -> None:
    tokens = list(penn.tokens(line))
    assert all(0 <= token.start < token.end <= len(line) for token in tokens)
    assert all(first.end <= second.start for first, second in pairwise(tokens))
    assert all(token.text and not any(map(str.isspace, token.text)) for token in tokens)
    assert not any(any(map(str.isspace, line[token.start : token.end])) for token in tokens)


MARKED_UP = st.lists(st.one_of(CHUNKS, st.sampled_from(["&amp;", "&#39;", "&nbsp;", "&#8203;", "&x;", "\u200b", "`"])))


@anything
@given(MARKED_UP.map("".join))
def test_unescaped_characters_cover_the_text(text: str) -> None:
    found = list(unescaped_characters(text))
    assert "".join(character for character, _ in found) == unescaped(text)
    offsets = [offset for _, offset in found]
    assert offsets == sorted(offsets)
    assert all(text[offset] in (character, "&") for character, offset in found)


WRITTEN = st.lists(
    st.sampled_from("don't can't company's AT&T Smith's workers 5% well-known (rose), \u00a34 'the' Mr. it".split()),
    min_size=1,
)


@anything
@given(WRITTEN, st.data())
def test_tokens_do_not_depend_on_how_a_program_left_the_characters(
    penn: PennTreebank, words: list[str], data: st.DataObject
) -> None:
    def left(character: str) -> str:
        forms = [character, *(form.format(ord(character)) for form in ("&#{};", "&#x{:X};", "&amp;#{};"))]
        others = {"'": APOSTROPHES, " ": ["&nbsp;", *SEPARATORS]}.get(character, ())
        return str(data.draw(st.sampled_from([*forms, *others])))

    plain = " ".join(words)
    sources = [left(character) for character in plain]
    line = "".join(sources)
    starts = [sum(map(len, sources[:at])) for at in range(len(sources) + 1)]
    expected = [Word(word.text, starts[word.start], starts[word.end]) for word in penn.tokens(plain)]
    assert list(penn.tokens(line)) == expected


@anything
@given(st.lists(st.sampled_from("the Company rose It profits bank Smith".split()), min_size=2, max_size=6), st.data())
def test_a_space_that_is_missing_between_sentences_changes_no_token(
    penn: PennTreebank, words: list[str], data: st.DataObject
) -> None:
    gaps = [data.draw(st.sampled_from([" ", ". ", ".", ", ", ",", "!", "?", ";"])) for _ in words]
    glued = "".join(map(str.__add__, words, gaps))
    assert texts(penn.tokens(glued)) == texts(penn.tokens(" ".join(words)))


@anything
@given(LINES, SPACES, LINES)
def test_a_text_split_at_white_space_has_the_same_tokens(penn: PennTreebank, left: str, space: str, right: str) -> None:
    joined = list(penn.tokens(left + space + right))
    assert joined == [*penn.tokens(left), *penn.tokens(right, len(left + space))]


@anything
@given(LINES)
def test_normal_form_is_its_own_normal_form(penn: PennTreebank, vocabulary: Vocabulary, line: str) -> None:
    known = [token.text for token in penn.tokens(line) if token.text in vocabulary.index]
    assert texts(penn.tokens(" ".join(known))) == known


@anything
@given(st.lists(CHUNKS, max_size=4).map("\n".join))
def test_every_completion_begins_with_what_was_typed(penn: PennTreebank, vocabulary: Vocabulary, text: str) -> None:
    completion = penn.complete(text)
    before = text[: len(text) - len(completion.typed)]
    assert completion.typed == "" or not any(map(str.isspace, completion.typed))
    assert before == "" or before[-1].isspace()
    assert completion.context[: len(context(before, penn))] == context(before, penn)
    places = range(len(vocabulary)) if completion.candidates is None else completion.candidates
    assert all(completion.text([vocabulary.tokens[place]]).startswith(completion.typed) for place in places)


@anything
@given(st.lists(LINES, max_size=3), st.sampled_from(["\n", "\r\n", "\n\n"]))
@example(["the company", ""], "\n")
@pytest.mark.parametrize("tokenizer", [PennTreebank, Whitespace])
def test_texts_are_those_of_the_tokens(
    vocabulary: Vocabulary, tokenizer: type[WordTokenizer], written: list[str], ending: str
) -> None:
    words, text = tokenizer(vocabulary), ending.join(written)
    for line in written:
        assert words.texts(line) == texts(words.tokens(line))
    assert context_texts(text, words) == texts(context(text, words))
    completion = words.complete(text)
    assert completion.context_texts == texts(completion.context)


@anything
@given(
    st.lists(st.one_of(CHUNKS, st.sampled_from([" ", "\t", "\n", "\r", "\r\n", " \n", "\x1c", "\u2028"]))).map("".join)
)
def test_blank_lines_change_nothing_where_they_are_no_sentences(penn: PennTreebank, text: str) -> None:
    passed_over = [list(sentence) for sentence in sentences(lines(text, blank=False), penn)]
    assert passed_over == [list(sentence) for sentence in sentences(lines(text), penn)]


@anything
@given(LINES, st.integers(0, 50))
def test_a_repeated_chunk_has_the_same_tokens_at_its_new_offset(penn: PennTreebank, line: str, offset: int) -> None:
    first = [Word(token.text, token.start + offset, token.end + offset) for token in penn.tokens(line)]
    assert list(penn.tokens(line, offset)) == first
