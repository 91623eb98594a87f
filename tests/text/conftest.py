"""A small vocabulary in the Penn Treebank's conventions."""

import pytest

from app.text.penn_treebank import PennTreebank
from app.text.words import Vocabulary

WORDS = """
the of a in to and or i it he she company companies computer compared do did is ca can wo would not let workers cents
let us am may ill no profits rose smith steel ibm nato may monday october cafe five well maybe million billion based
property well-known calif.-based year-end xerox ohio end bank
N $ # & us$ c$ <unk> 's n't 're 've 'm 'll 'd ' '80s 1980s 10-year 500-stock 20th p53
mr. inc. corp. no. ill. n. i. j. u.s. u.k. p.m. a.m. a.m etc. calif. s&p at&t o'brien property\\/casualty 1\\/2-year \\*
"""


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(["<eos>", *dict.fromkeys(WORDS.split())])


@pytest.fixture(scope="session")
def penn(vocabulary: Vocabulary) -> PennTreebank:
    return PennTreebank(vocabulary)
