"""Tokenizers: raw text <-> tokens with offsets <-> ids.

Training and the server use the same tokenizer object. `TOKENIZERS` maps the name that a bundle's manifest holds to the
tokenizer.
"""

from collections.abc import Callable

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

TOKENIZERS: dict[str, Callable[[Vocabulary], Tokenizer]] = {"ptb": PennTreebank, "whitespace": Whitespace}

__all__ = [
    "BLANK",
    "END",
    "TOKENIZERS",
    "UNKNOWN",
    "Completion",
    "Ids",
    "Token",
    "Tokenizer",
    "Vocabulary",
    "context",
    "context_texts",
    "lines",
    "make_tokenizer",
    "sentences",
]


def make_tokenizer(name: str, vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer of this name; raise ValueError if there is none."""
    if name not in TOKENIZERS:
        raise ValueError(f"normalisation: expected one of {', '.join(TOKENIZERS)}, found {name!r}")
    return TOKENIZERS[name](vocabulary)
