"""Words that a caption may use next: no repeated phrases and, if wanted, no guess at gender."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from app.runtime.recurrent_engine import Floats

_FUNCTION_WORDS = (
    "a an the and or of in on at to with by from for into onto over under up down out off near next beside behind"
    " between through across along around against is are was be being been has have had do does it its his her hers"
    " their theirs he she they them him that this which who while as there some other another one two three four"
    " very not no 's n't"
)
FUNCTION_WORDS: Final = frozenset(_FUNCTION_WORDS.split())
_GENDERED = {  # neutral word: the words whose probability it takes
    "person": (
        "man woman guy lady gentleman male female girl boy bride groom dude cowboy cowgirl princess prince schoolgirl"
        " schoolboy workman businessman businesswoman cameraman fisherman baseman batsman policewoman mans"
    ),
    "people": (
        "men women guys ladies gentlemen girls boys males females dudes cowboys bridesmaids groomsmen schoolgirls"
        " schoolboys workmen businessmen fishermen"
    ),
    "parent": "mother father mom dad",
    "parents": "mothers fathers",
    "child": "son daughter",
    "children": "sons daughters",
    "sibling": "brother sister",
    "siblings": "brothers sisters",
    "grandparent": "grandmother grandfather grandma grandpa",
    "partner": "husband wife boyfriend girlfriend",
    "officer": "policeman",
    "officers": "policemen",
    "firefighter": "fireman",
    "firefighters": "firemen",
    "server": "waiter waitress",
    "they": "he she",
    "their": "his her hers him himself herself",
}
NEUTRAL: Final = {word: neutral for neutral, gendered in _GENDERED.items() for word in gendered.split()}


class Wording:
    """The vocabulary's function words and gendered words."""

    def __init__(self, strings: Sequence[str]) -> None:
        """`strings`: the vocabulary, by token id."""
        index = {word: token for token, word in enumerate(strings)}
        self._functional = frozenset(index[word] for word in FUNCTION_WORDS if word in index)
        self._articles = frozenset(index[word] for word in ("a", "an", "the") if word in index)
        self._and = index.get("and")
        pairs = [(index[word], index.get(neutral)) for word, neutral in NEUTRAL.items() if word in index]
        self._gendered = np.array([token for token, _ in pairs], np.int64)
        self._neutral = {
            neutral: np.array([token for token, other in pairs if other == neutral], np.int64)
            for neutral in {other for _, other in pairs if other is not None}
        }

    def neutral(self, log_probabilities: Floats) -> Floats:
        """Return log-probabilities (V,) with those of gendered words added to their neutral word's."""
        found = log_probabilities.copy()
        for neutral, tokens in self._neutral.items():
            found[neutral] = np.logaddexp.reduce(log_probabilities[[neutral, *tokens]])
        found[self._gendered] = -np.inf
        return found

    def repeating(self, tokens: Sequence[int]) -> list[int]:
        """Return the content words that would repeat a pair of neighbouring ones, or a word before `and`."""
        if not tokens or tokens[-1] in self._functional:
            joined = tokens[:-1] if tokens and tokens[-1] in self._articles else tokens  # a couch and (a)
            before = joined[-2:-1] if joined and joined[-1] == self._and else ()
            return [word for word in before if word not in self._functional]
        return [after for before, after in pairwise(tokens) if before == tokens[-1] and after not in self._functional]


class WordStream:
    """The words of a growing caption, each once."""

    def __init__(self, word: Callable[[int], str]) -> None:
        self._word = word
        self._added = 0
        self._words: list[str] = []

    def __call__(self, tokens: Sequence[int]) -> None:
        """Add the words of these leading tokens that are new."""
        self._words += map(self._word, tokens[self._added :])
        self._added = len(tokens)

    def take(self) -> list[str]:
        """Return the words added since the last call."""
        words, self._words = self._words, []
        return words
