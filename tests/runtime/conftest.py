"""Fixtures of app.runtime's tests: the tiny bundle, and a text that the tiny model can read."""

import numpy as np
import pytest

from app.bundle import Bundle
from app.text import END
from app.text.words import Vocabulary


@pytest.fixture(scope="session")
def vocabulary(tiny_bundle: Bundle) -> Vocabulary:
    return Vocabulary(tiny_bundle.text("vocabulary.txt").split("\n"))


@pytest.fixture(scope="session")
def document(vocabulary: Vocabulary) -> str:
    """Forty lines of 1 to 40 words in the corpus's conventions, some of them unknown; the last line has no break."""
    generator = np.random.default_rng(7)
    words = [*(token for token in vocabulary.tokens if token != END), "zork", "quux"]
    return "\n".join(" ".join(generator.choice(words, generator.integers(1, 41))) for _ in range(40))
