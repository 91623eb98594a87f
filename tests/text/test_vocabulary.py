import pytest

from app.errors import CorpusError
from app.text import read_tokenizer
from app.text.penn_treebank import PennTreebank
from app.text.whitespace import Whitespace
from app.text.words import Vocabulary, WordTokenizer


def test_ids_are_indices_and_unknown_tokens_share_one() -> None:
    vocabulary = Vocabulary(["the", "<unk>", "<eos>"])
    assert vocabulary.ids(["the", "cat", "<eos>", "sat"]) == [0, 1, 2, 1]
    assert (vocabulary.end, vocabulary.unknown, len(vocabulary)) == (2, 1, 3)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["<eos>", "<unk>", "a", "a"], "found 1 duplicates"),
        (["<unk>"], "expected <eos>"),
        (["<eos>"], "expected <unk>"),
    ],
)
def test_a_vocabulary_with_a_repeated_or_missing_token_is_rejected(tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(tokens)


@pytest.mark.parametrize("tokenizer", [PennTreebank, Whitespace])
def test_every_tokenizer_works_with_a_vocabulary_of_specials_alone(tokenizer: type[WordTokenizer]) -> None:
    made = tokenizer(Vocabulary(["<eos>", "<unk>"]))
    assert [token.text for token in made.tokens("a word")] == ["a", "word"]
    candidates = made.complete("a wo").candidates
    assert candidates is not None
    assert not len(candidates)


def test_an_unknown_tokenizer_is_rejected_by_name() -> None:
    with pytest.raises(ValueError, match="expected one of ptb, subword, whitespace, found 'klingon'"):
        read_tokenizer("klingon", str)


@pytest.mark.parametrize("token", ["a\nb", "a\rb", "\n"])
def test_a_token_with_a_line_break_is_not_written(token: str) -> None:
    with pytest.raises(CorpusError, match=r"vocabulary: expected tokens without line breaks, found '"):
        Vocabulary(["<eos>", "<unk>", token]).file_content()


def test_a_written_vocabulary_is_read_as_it_was() -> None:
    tokens = ("<eos>", "<unk>", "a", "\u2028", "\x85b", " ")
    assert Vocabulary(Vocabulary(tokens).file_content().split("\n")).tokens == tokens
