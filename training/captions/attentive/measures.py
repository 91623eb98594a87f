"""Faults of captions: tags that go unnamed, objects that nobody sees, repeated phrases, sameness."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from app.images import LABELS
from app.runtime.families.captions import Description
from app.runtime.families.wording import FUNCTION_WORDS, NEUTRAL
from training.captions.attentive.mentions import mentions
from training.captions.attentive.training_set import SURE
from training.captions.vocabulary import words


def measures(answers: Sequence[Description], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the measures of captions of photographs, from their tags and reference captions.

    named: the share of tags with a score above 0.7 that the caption mentions; grounded: the share of mentioned objects
    that the detector sees or a reference mentions; repeats: captions with a pair of content words twice; distinct and
    commonest: shares of different captions and of the commonest one.
    """
    sure = named = mentioned = grounded = 0
    for answer, group in zip(answers, references, strict=True):
        found = {LABELS[label] for label in mentions(words(answer.text))}
        seen = {tag.label for tag in answer.tags}
        described = {LABELS[label] for caption in group for label in mentions(words(caption))}
        strong = {tag.label for tag in answer.tags if tag.score > SURE}
        sure, named = sure + len(strong), named + len(strong & found)
        mentioned, grounded = mentioned + len(found), grounded + len(found & (seen | described))
    captions = [answer.text for answer in answers]
    return {
        "named": named / max(sure, 1),
        "grounded": grounded / max(mentioned, 1),
        "repeats": float(sum(map(repeats, captions))),
        "distinct": len(set(captions)) / len(captions),
        "commonest": max(Counter(captions).values()) / len(captions),
    }


def repeats(caption: str) -> bool:
    """Return whether a caption has a pair of neighbouring content words twice."""
    pairs = Counter(pair for pair in pairwise(caption.split()) if FUNCTION_WORDS.isdisjoint(pair))
    return max(pairs.values(), default=0) > 1


def neutralised(caption: str) -> str:
    """Return a caption's words with neutral words for gendered ones."""
    return " ".join(NEUTRAL.get(word, word) for word in words(caption))


def gendered(captions: Iterable[str]) -> int:
    """Return the number of gendered words in captions."""
    return sum(word in NEUTRAL for caption in captions for word in words(caption))
