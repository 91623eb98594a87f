"""Texts that are tokenized in parts."""

import pytest

from app.text.penn_treebank import PennTreebank
from app.text.subword import SPECIALS, SubwordTokenizer
from app.text.tokenizer import Tokenizer
from app.text.whitespace import Whitespace
from app.text.words import END, UNKNOWN, Vocabulary
from tests.text.subwords import subword_tokenizer

WORDS = Vocabulary([END, UNKNOWN, "the", "company", "'s", "profits", "N"])
TOKENIZERS: dict[str, Tokenizer] = {
    "penn": PennTreebank(WORDS),
    "whitespace": Whitespace(WORDS),
    "subword": SubwordTokenizer([*map(str.encode, SPECIALS), *(bytes([value]) for value in range(256))], []),
}
TEXT = "The company's  profits \u2014 12% ... the company\n\n  The U.S. profits... rose\n"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokens_of_a_line_cut_before_a_word_are_those_of_the_whole(name: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS[name]
    whole = list(tokenizer.encode(TEXT, ended=True))
    cuts = [at for at in range(1, len(TEXT) - 1) if TEXT[at] == " " and TEXT[at - 1] > " " and TEXT[at + 1].isalnum()]
    assert len(cuts) == 7
    for cut in cuts:
        first, second = TEXT[:cut], TEXT[cut:]
        assert [*tokenizer.encode(first), *tokenizer.encode(second, cut, ended=True, inside_line=True)] == whole


@pytest.mark.parametrize("ends_line", [False, True])
@pytest.mark.parametrize(
    "kind", ["The U.S.  <email> isn't\n\n 12% \u00e9t\u00e9 ", "a\n", "word", " \u3000 .", "<url>\t"]
)
def test_a_long_text_has_the_pieces_of_its_lines(kind: str, ends_line: bool) -> None:
    tokenizer = subword_tokenizer()
    text = kind * (20_000 // len(kind)) + "\n" * ends_line
    once = [token.id for token in tokenizer.encode(text)]
    assert [tokenizer.ids(text), tokenizer.ids(text)] == [once, once]  # the second time from the cache
    again = [token.id for token in tokenizer.encode(f"{text} and", inside_line=True)]
    assert tokenizer.ids(f"{text} and", inside_line=True) == again
