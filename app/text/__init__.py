"""Tokenizers: raw text <-> tokens with offsets <-> ids.

Training and the server use the same tokenizer object. `TOKENIZERS` maps the name that a bundle's manifest holds to the
tokenizer.
"""

from collections.abc import Callable

from app.text.penn_treebank import PennTreebank
from app.text.tokenizer import (
    END,
    UNKNOWN,
    WORDLESS,
    Completion,
    Ids,
    Normaliser,
    Token,
    Vocabulary,
    context,
    context_texts,
    lines,
    sentences,
)
from app.text.whitespace import Whitespace

NORMALISERS: dict[str, Callable[[Vocabulary], Normaliser]] = {"ptb": PennTreebank, "whitespace": Whitespace}

__all__ = [
    "END",
    "NORMALISERS",
    "UNKNOWN",
    "WORDLESS",
    "Completion",
    "Ids",
    "Normaliser",
    "Token",
    "Vocabulary",
    "context",
    "context_texts",
    "lines",
    "normaliser",
    "sentences",
]


def normaliser(name: str, vocabulary: Vocabulary) -> Normaliser:
    """Return the tokenizer of this name; raise ValueError if there is none."""
    if name not in NORMALISERS:
        raise ValueError(f"normalisation: expected one of {', '.join(NORMALISERS)}, found {name!r}")
    return NORMALISERS[name](vocabulary)
