"""The number of tokens of a text in the Penn Treebank's conventions, for rolling.yaml."""

import re
from typing import Any


def per_token(doc: dict[str, Any], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """Return the log-likelihood of a document and its tokens: words, and the ends of sentences."""
    return {"word_perplexity": (results[0], len(re.findall(r"\S+|\n", doc["text"])))}
