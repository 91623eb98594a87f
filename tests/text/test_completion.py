import pytest

from app.text.penn_treebank import PennTreebank
from app.text.whitespace import Whitespace
from app.text.words import Completion, Vocabulary


def suggestions(completion: Completion, vocabulary: Vocabulary) -> set[str]:
    assert completion.candidates is not None
    return {completion.text([vocabulary.tokens[place]]) for place in completion.candidates}


@pytest.mark.parametrize(
    ("text", "context", "expected"),
    [
        ("the comp", "the", "company companies compared computer"),
        ("the Comp", "the", "Company Companies Compared Computer"),
        ("the COMPAN", "the", "COMPANY COMPANIES"),
        ("comp", "", "company companies compared computer"),
        ("the\ncomputer", "the <eos>", "computer"),
        # opening punctuation stays
        ('the "comp', "the", '"company "companies "compared "computer'),
        ("(\u201cwel", "", "(\u201cwell (\u201cwell-known"),
        ("'xer", "", "'xerox"),
        ("the\u2014xer", "the", "the\u2014xerox"),
        ("and/xer", "and", "and/xerox"),
        # clitics
        ("company'", "company", "company' company's company're company've company'm company'll company'd"),
        ("the company\u2019s", "the company", "company\u2019s"),
        ("U.S.'l", "u.s.", "U.S.'ll"),
        ("don'", "do", "don't"),
        ("don\u2019t", "do", "don\u2019t"),
        ("I can'", "i ca", "can't"),
        ("o'", "", "o'brien"),
        ("isn", "is", "isn't"),
        ("I didn", "i did", "didn't"),
        ("don`", "do", "don`t"),
        ("don&#39;", "do", "don&#39;t"),
        # parts of sentences without a space between them
        ("rose.Comput", "rose", "rose.Computer"),
        ("rose,xer", "rose", "rose,xerox"),
        ("the\u200bxer", "the", "the\u200bxerox"),
        ("'8", "", "'80s"),
        # figures, abbreviations, symbols
        ("the 10", "the", "10-year"),
        ("$5", "$", "$500-stock"),
        ("u.", "", "u.s. u.k."),
        ("U.", "", "U.S. U.K."),
        ("m", "", "mr. monday maybe may million"),
        ("Property/", "", "Property/casualty"),
        ("well-", "", "well-known"),
        ("us$", "", "us$"),
        # nothing fits
        ("the zzz", "the", ""),
        ("company,", "", ""),
        ("company'x", "", ""),
        ("company-", "", ""),
        ("<un", "", ""),
        ("<eo", "", ""),
        ("x" * 100, "", ""),
    ],
)
def test_words_that_begin_as_typed(
    penn: PennTreebank, vocabulary: Vocabulary, text: str, context: str, expected: str
) -> None:
    completion = penn.complete(text)
    assert [token.text for token in completion.context] == context.split()
    assert suggestions(completion, vocabulary) == set(expected.split())


@pytest.mark.parametrize(
    ("text", "context", "suggestion"),
    [
        ("", "", "company"),
        ("the ", "the", "company"),
        ("the\n", "the <eos>", "company"),
        ("the \u201c", "the", "\u201ccompany"),
        ("the (", "the", "(company"),
    ],
)
def test_any_word_may_follow_a_space_or_opening_punctuation(
    penn: PennTreebank, text: str, context: str, suggestion: str
) -> None:
    completion = penn.complete(text)
    assert completion.candidates is None
    assert [token.text for token in completion.context] == context.split()
    assert completion.text(["company"]) == suggestion


@pytest.mark.parametrize(
    ("text", "run", "expected"),
    [
        ("the comp", ["company", "'s", "profits"], "company's profits"),
        ("the Comp", ["company", "of", "mr."], "Company of Mr."),
        ("the u", ["u.s.", "'s", "i"], "u.s.'s I"),
        ("do", ["do", "n't", "rose"], "don't rose"),
        ("company'", ["'s", "monday"], "company's Monday"),
        ("", ["$", "N", "million"], "$N million"),
    ],
)
def test_a_run_goes_on_from_what_was_typed(penn: PennTreebank, text: str, run: list[str], expected: str) -> None:
    assert penn.complete(text).text(run) == expected


def test_context_offsets_point_into_the_whole_text(penn: PennTreebank) -> None:
    text = "The (company\u2019"
    assert [text[token.start : token.end] for token in penn.complete(text).context] == ["The", "company"]


def test_whitespace_words_are_completed_case_sensitively() -> None:
    vocabulary = Vocabulary(["<eos>", "<unk>", "The", "Then", "the", "<u>"])
    words = Whitespace(vocabulary)
    assert suggestions(words.complete("a Th"), vocabulary) == {"The", "Then"}
    assert suggestions(words.complete("<"), vocabulary) == {"<u>"}
    assert suggestions(words.complete("a (Th"), vocabulary) == set()
    assert words.complete("a ").candidates is None
    assert words.complete("a Th").text(["The", "'s"]) == "The 's"
    assert [token.text for token in words.complete("\na Th").context] == ["<eos>", "a"]
