"""Tokenizers: raw text <-> tokens with offsets <-> ids.

Training and the server use the same tokenizer object. `TOKENIZERS` maps the name that a bundle's manifest holds to the
tokenizer.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from app.text.penn_treebank import PennTreebank
from app.text.tokenizer import (
    BLANK,
    END,
    UNKNOWN,
    Completion,
    Ids,
    Token,
    Tokenizer,
    Vocabulary,
    context,
    context_texts,
    lines,
    sentences,
)
from app.text.whitespace import Whitespace

TokenizerFactory: TypeAlias = Callable[[Vocabulary], Tokenizer]
TOKENIZERS: Final[Mapping[str, TokenizerFactory]] = {"ptb": PennTreebank, "whitespace": Whitespace}

__all__ = [
    "BLANK",
    "END",
    "TOKENIZERS",
    "UNKNOWN",
    "Completion",
    "Ids",
    "Token",
    "Tokenizer",
    "TokenizerFactory",
    "Vocabulary",
    "context",
    "context_texts",
    "lines",
    "make_tokenizer",
    "sentences",
]


def make_tokenizer(
    name: str, vocabulary: Vocabulary, tokenizers: Mapping[str, TokenizerFactory] = TOKENIZERS
) -> Tokenizer:
    """Return the tokenizer of this name. Raise ValueError if `tokenizers` has none."""
    if name not in tokenizers:
        raise ValueError(f"normalisation: expected one of {', '.join(tokenizers)}, found {name!r}")
    return tokenizers[name](vocabulary)
