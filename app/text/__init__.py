"""Tokenizers: raw text <-> tokens with offsets <-> ids.

Training and the server use the same tokenizer object. `TOKENIZERS` maps the name that a bundle's manifest holds to the
tokenizer's class.
"""

from collections.abc import Callable, Mapping
from typing import Final

from app.text.penn_treebank import PennTreebank
from app.text.subword import SubwordTokenizer
from app.text.tokenizer import Flags, Following, Ids, Prefix, Token, Tokenizer
from app.text.whitespace import Whitespace
from app.text.words import END, UNKNOWN, Vocabulary, WordTokenizer

TOKENIZERS: Final[Mapping[str, type[Tokenizer]]] = {
    "ptb": PennTreebank,
    "subword": SubwordTokenizer,
    "whitespace": Whitespace,
}

__all__ = [
    "END",
    "TOKENIZERS",
    "UNKNOWN",
    "Flags",
    "Following",
    "Ids",
    "Prefix",
    "Token",
    "Tokenizer",
    "Vocabulary",
    "WordTokenizer",
    "read_tokenizer",
]


def read_tokenizer(
    name: str, read: Callable[[str], str], tokenizers: Mapping[str, type[Tokenizer]] = TOKENIZERS
) -> Tokenizer:
    """Return the tokenizer of this name; `read` returns the text of a file of its bundle.

    Raise ValueError if `tokenizers` has none of the name or its file is of another kind.
    """
    if name not in tokenizers:
        raise ValueError(f"normalisation: expected one of {', '.join(tokenizers)}, found {name!r}")
    found = tokenizers[name]
    try:
        return found.parse(read(found.FILE))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{found.FILE}: expected the file of a {name} tokenizer: {error!r}") from error
