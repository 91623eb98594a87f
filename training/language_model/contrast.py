"""Contrast sets: English lines beside spoilt ones, which should cost more bits a byte.

Lines of the validation texts and six spoilt forms of each, drawn with a seed: letters shuffled inside words, random
letters, runs on the keyboard, words shuffled, one word replaced by a non-word, and sentences of other languages.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from training.language_model.typing_evaluation import Texts

Spoil: TypeAlias = Callable[[str, random.Random], str]

LINES: Final = 1000
_LETTERS: Final = re.compile(r"[A-Za-z]+")
_ROWS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_VOWELS: Final = "aeiou"
_CONSONANTS: Final = "bdfgklmnprstvz"
_LEAST_WORDS, _LEAST_CHARACTERS, _MOST_CHARACTERS = 5, 25, 300


class Separation(NamedTuple):
    """Separation of spoilt from English lines by their scores."""

    auc: float  # of the spoilt forms of one half of the lines and the other half as they are
    pairs: float  # share of lines that score lower than their own spoilt form


def shuffled_letters(line: str, draw: random.Random) -> str:
    """Shuffle the letters of each word."""
    return _LETTERS.sub(lambda match: "".join(draw.sample(match[0], len(match[0]))), line)


def random_letters(line: str, draw: random.Random) -> str:
    """Replace each letter by a random one."""
    return _LETTERS.sub(lambda match: "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=len(match[0]))), line)


def keyboard_runs(line: str, draw: random.Random) -> str:
    """Replace each word by a run of neighbouring keys of its length, to and fro on a row of the keyboard."""

    def run(match: re.Match[str]) -> str:
        row = draw.choice(_ROWS)
        round_trip = row + row[-2:0:-1]
        start = draw.randrange(len(round_trip))
        return "".join(round_trip[(start + step) % len(round_trip)] for step in range(len(match[0])))

    return _LETTERS.sub(run, line)


def shuffled_words(line: str, draw: random.Random) -> str:
    """Shuffle the words, which differ from each other somewhere, until they are in another order."""
    words = line.split()
    while (shuffled := draw.sample(words, len(words))) == words:
        pass
    return " ".join(shuffled)


def non_word(line: str, draw: random.Random) -> str:
    """Replace one word of four letters or more by a pronounceable non-word of its length."""
    word = draw.choice([match for match in _LETTERS.finditer(line) if len(match[0]) >= 4])
    first = draw.randrange(2)
    letters = [draw.choice((_VOWELS, _CONSONANTS)[(first + at) % 2]) for at in range(len(word[0]))]
    spoilt = "".join(letters)
    return line[: word.start()] + (spoilt.capitalize() if word[0][0].isupper() else spoilt) + line[word.end() :]


SPOILS: Final[Mapping[str, Spoil]] = {
    "shuffled letters": shuffled_letters,
    "random letters": random_letters,
    "keyboard runs": keyboard_runs,
    "shuffled words": shuffled_words,
    "one non-word": non_word,
}

NGRAM_AUC: Final[Mapping[str, float]] = {
    "shuffled letters": 1.0,
    "random letters": 1.0,
    "keyboard runs": 1.0,
    "shuffled words": 0.9484,
    "one non-word": 0.7753,
    "other languages": 0.9982,
}
"""Of an interpolated Kneser-Ney 5-gram over the pieces of the published `everyday`, on the lines of its card."""


def english_lines(texts: Texts, count: int, draw: random.Random) -> list[str]:
    """Draw `count` lines of some length, about as many from each source."""
    drawn: list[str] = []
    for some in texts.values():
        lines = [line for text in some for line in text.split("\n") if _is_spoilable(line)]
        drawn += draw.sample(lines, min(len(lines), -(-count // len(texts))))
    draw.shuffle(drawn)
    return drawn[:count]


def _is_spoilable(line: str) -> bool:
    words = line.split()
    long = any(len(word) >= 4 for word in _LETTERS.findall(line))
    sized = _LEAST_CHARACTERS <= len(line) <= _MOST_CHARACTERS and len(words) >= _LEAST_WORDS
    return sized and long and len(set(words)) > 1 and "<" not in line


def other_languages() -> list[str]:
    """Return sentences of other languages, written for this purpose."""
    content = resources.files("training.language_model").joinpath("other_languages.txt").read_text(encoding="utf-8")
    return [line.partition(" ")[2] for line in content.splitlines()]


def contrast_sets(lines: Sequence[str], seed: int = 1) -> dict[str, list[str]]:
    """Return the spoilt forms of `lines` by name, in their order; other languages' sentences are repeated."""
    sets = {
        name: [spoil(line, random.Random(f"{seed} {name} {at}")) for at, line in enumerate(lines)]  # noqa: S311
        for name, spoil in SPOILS.items()
    }
    others = other_languages()
    return sets | {"other languages": [others[at % len(others)] for at in range(len(lines))]}


def separation(english: Sequence[float], spoilt: Sequence[float]) -> Separation:
    """Return how well scores tell lines from their spoilt forms; higher is worse English."""
    pairs = np.mean(np.asarray(spoilt) > np.asarray(english))
    return Separation(auc(english[::2], spoilt[1::2]), float(pairs))


def auc(genuine: Sequence[float], spoilt: Sequence[float]) -> float:
    """Return the area under the ROC curve of separating spoilt from genuine text by a higher score (Mann-Whitney U)."""
    scores: npt.NDArray[np.float64] = np.concatenate([genuine, spoilt])
    _, inverse, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[inverse]  # ties share their mean rank
    above = ranks[len(genuine) :].sum() - len(spoilt) * (len(spoilt) + 1) / 2
    return float(above / (len(genuine) * len(spoilt)))


def evaluate(bits_a_byte: Callable[[Sequence[str]], list[float]], lines: Sequence[str]) -> dict[str, Separation]:
    """Return the separation of each contrast set of `lines` by `bits_a_byte`."""
    english = bits_a_byte(lines)
    return {name: separation(english, bits_a_byte(spoilt)) for name, spoilt in contrast_sets(lines).items()}


def table(models: Mapping[str, Mapping[str, Separation]]) -> str:
    """Return the separations of each model as a Markdown table, the n-gram model's AUC in the last column."""
    rows = [
        ["contrast", *(f"{model}: AUC | pairs" for model in models), "5-gram: AUC"],
        ["---"] * (2 + 2 * len(models)),
    ]
    for name, ngram in NGRAM_AUC.items():
        found = [models[model][name] for model in models]
        rows.append([name, *(f"{one.auc:.4f} | {one.pairs:.4f}" for one in found), f"{ngram:.4f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
