"""Tags for sentences without photographs: as a detector would see, miss and invent what a sentence mentions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from app.images import LABELS
from app.images.tags import COUNTS, KINDS, Slots, slots
from training.captions.attentive.mentions import mentions
from training.captions.vocabulary import words

Shares: TypeAlias = npt.NDArray[np.float64]

PRIOR_SEEN = 0.5  # share of a label's mentions that are detected, before photographs
PRIOR_PHOTOGRAPHS = 10  # that it counts as


@dataclass(frozen=True)
class TagNoise:
    """The detector's behaviour on photographs with captions."""

    seen: Shares  # (80,): the share of captions that mention a label in which it is detected
    invented: Shares  # (80,): the share of the other captions in which it is detected
    seen_kinds: Shares  # (3, 15): the kinds of detected labels that are mentioned, by number mentioned
    invented_kinds: Shares  # (15,): the kinds of the others

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]], tags: Slots) -> "TagNoise":
        """Measure it on photographs with captions, as written, and tags (N, 8, 2)."""
        mentioned, hits, invented = np.zeros(len(LABELS)), np.zeros(len(LABELS)), np.zeros(len(LABELS))
        seen_kinds, invented_kinds, total = np.full((COUNTS, KINDS), 0.01), np.full(KINDS, 0.01), 0
        for group, rows in zip(captions, tags, strict=True):
            found = {int(label): int(kind) for label, kind in rows if label < len(LABELS)}
            for caption in group:
                said = mentions(words(caption))
                total += 1
                for label, count in said.items():
                    mentioned[label] += 1
                    if label in found:
                        hits[label] += 1
                        seen_kinds[count - 1, found[label]] += 1
                for label in found.keys() - said.keys():
                    invented[label] += 1
                    invented_kinds[found[label]] += 1
        return cls(
            (hits + PRIOR_SEEN * PRIOR_PHOTOGRAPHS) / (mentioned + PRIOR_PHOTOGRAPHS),
            invented / np.maximum(total - mentioned, 1),
            seen_kinds / seen_kinds.sum(1, keepdims=True),
            invented_kinds / invented_kinds.sum(),
        )

    def draw(self, said: Mapping[int, int], random: np.random.Generator) -> Slots:
        """Draw tags (8, 2) for a sentence that mentions these labels, each so many times; the surest come first."""
        tags = [
            (label, int(random.choice(KINDS, p=self.seen_kinds[count - 1])))
            for label, count in said.items()
            if random.random() < self.seen[label]
        ]
        tags += [
            (label, int(random.choice(KINDS, p=self.invented_kinds)))
            for label in np.flatnonzero(random.random(len(LABELS)) < self.invented).tolist()
            if label not in said
        ]
        return slots(sorted(tags, key=lambda tag: -(tag[1] // COUNTS)))


def without_tags(tags: Slots, share: float, random: np.random.Generator) -> Slots:
    """Return tags (B, 8, 2) with a share of the rows drawn to have none."""
    return np.where(random.random((len(tags), 1, 1)) < share, slots(()), tags)
