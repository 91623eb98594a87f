"""Photographs, captions and sentences as tensors, and the batches of a step."""

from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import numpy as np
import torch
from torch import Tensor

from app.images import LABELS
from app.images.tags import Slots, tag_slots
from app.models.attentive_captioner import Scene
from app.text import Vocabulary
from training.captions.attentive.config import AttentiveConfig
from training.captions.attentive.data import AttentiveCorpus, Split
from training.captions.attentive.mentions import mentions, names
from training.captions.attentive.tag_noise import TagNoise, without_tags
from training.captions.dataset import Order, by_length, padded
from training.captions.scores import CiderD
from training.captions.vocabulary import words

FEWEST_REFERENCES: Final = 4  # of a photograph of the reward phase: with fewer, CIDEr-D is too noisy
SURE: Final = 0.7  # score of a detection that a caption should name
SIDES: Final = frozenset({"left", "right"})


@dataclass(frozen=True)
class Photographs:
    """The photographs of a split as tensors."""

    grids: Tensor  # (N, views, 81, 352), float16
    pooled: Tensor  # (N, views, 1280), float16
    tags: Slots  # (N, 8, 2)

    @classmethod
    def of(cls, split: Split) -> "Photographs":
        """Take a split's sights."""
        tags = np.stack([tag_slots(each) for each in split.detections])
        return cls(torch.from_numpy(split.grids), torch.from_numpy(split.pooled), tags)

    def scene(self, photographs: Order, views: Order | int = 0, tags: Slots | None = None) -> Scene:
        """Return photographs (B,) in some views, with their own tags or other ones."""
        shown = torch.from_numpy(self.tags[photographs] if tags is None else tags)
        return Scene(shown, self.grids[photographs, views].float(), self.pooled[photographs, views].float())


@dataclass(frozen=True)
class TrainingSet:
    """The training split and the sentences."""

    photographs: Photographs
    captions: Tensor  # (C, length + 2): <eos>, the words, <eos>, then IGNORED
    lengths: Order  # (C,)
    owners: Order  # (C,): the index of each caption's photograph
    sided: Order  # (C,): 1 for captions that say left or right, which fit no mirror image
    sentences: Tensor  # (S, length + 2)
    sentence_lengths: Order  # (S,)
    said: list[dict[int, int]]  # labels that each sentence mentions
    noise: TagNoise
    reward: CiderD
    rewarded: Order  # photographs of the reward phase
    sure: list[list[frozenset[int]]]  # of each photograph: the words for each of its sure tags
    vocabulary: Vocabulary
    config: AttentiveConfig
    ranks: int  # a batch of fewer examples is left out
    _orders: dict[str, tuple[int, list[Order]]] = field(default_factory=dict)  # the current epoch's batches

    @classmethod
    def of(cls, corpus: AttentiveCorpus, config: AttentiveConfig, ranks: int = 1) -> "TrainingSet":
        """Tokenize captions and sentences; those longer than config.length are cut and have no end."""
        split, vocabulary = corpus.splits["train"], corpus.vocabulary
        ids = [[[*vocabulary.ids(words(caption)), vocabulary.end] for caption in group] for group in split.captions]
        captions, lengths = padded([*chain.from_iterable(ids)], config.length, vocabulary.end)
        worded = [words(sentence) for sentence in corpus.sentences]
        encoded = [[*vocabulary.ids(each), vocabulary.end] for each in worded]
        sentences, sentence_lengths = padded(encoded, config.length, vocabulary.end)
        photographs = Photographs.of(split)
        named = [frozenset(vocabulary.ids(names(label))) - {vocabulary.unknown} for label in range(len(LABELS))]
        return cls(
            photographs,
            captions,
            lengths,
            np.array([owner for owner, group in enumerate(ids) for _ in group]),
            np.array([not SIDES.isdisjoint(words(caption)) for group in split.captions for caption in group], np.int64),
            sentences,
            sentence_lengths,
            [mentions(each) for each in worded],
            TagNoise.of(split.captions, photographs.tags),
            CiderD(ids),
            np.array([owner for owner, group in enumerate(ids) if len(group) >= FEWEST_REFERENCES]),
            [
                [named[LABELS.index(label)] for label in sorted({e.label for e in each if e.score >= SURE})]
                for each in split.detections
            ],
            vocabulary,
            config,
            ranks,
        )

    def caption_batch(self, step: int, random: np.random.Generator) -> tuple[Scene, Tensor]:
        """Return a step's photographs, in random views, and captions (B, T + 1)."""
        chosen = self._batch("captions", self.lengths, self.config.batch_size, step)
        owners = self.owners[chosen]
        views = random.integers(self.photographs.grids.shape[1], size=len(chosen))
        views -= views % 2 * self.sided[chosen]  # odd views are mirrored
        tags = without_tags(self.photographs.tags[owners], self.config.untagged, random)
        return self.photographs.scene(owners, views, tags), self.captions[chosen, : self.lengths[chosen].max() + 1]

    def sentence_batch(self, step: int, random: np.random.Generator) -> tuple[Scene, Tensor]:
        """Return a step's sentences (B, T + 1) and scenes of drawn tags alone."""
        chosen = self._batch("sentences", self.sentence_lengths, self.config.text_batch, step)
        tags = np.stack([self.noise.draw(self.said[index], random) for index in chosen])
        scene = Scene(torch.from_numpy(without_tags(tags, self.config.untagged, random)))
        return scene, self.sentences[chosen, : self.sentence_lengths[chosen].max() + 1]

    def reward_batch(self, step: int, random: np.random.Generator) -> tuple[Scene, Order]:
        """Return a step's photographs of the reward phase, in random views, each as often as it is sampled."""
        chosen = self._batch("rewarded", np.zeros(len(self.rewarded), np.int64), self.config.reward_batch, step)
        owners = self.rewarded[chosen]
        views = random.integers(self.photographs.grids.shape[1], size=len(owners))
        tags = without_tags(self.photographs.tags[owners], self.config.untagged, random)
        return self.photographs.scene(owners, views, tags), owners

    def _batch(self, name: str, lengths: Order, size: int, step: int) -> Order:
        """Return the indices of a step's batch: every epoch has an order of its own."""
        whole, rest = divmod(len(lengths), size)
        epoch, index = divmod(step, whole + (rest >= self.ranks))
        if self._orders.get(name, (-1,))[0] != epoch:
            draw = np.random.default_rng([self.config.seed, epoch, len(name)])
            batches = by_length(lengths, size, draw)
            self._orders[name] = epoch, [batch for batch in batches if len(batch) >= self.ranks]
        return self._orders[name][1][index]

    def score(self, photograph: int, caption: list[int]) -> float:
        """Return the reward of a caption with its end: CIDEr-D, 0 to 10, and `tag_reward` for naming all sure tags."""
        sure, said = self.sure[photograph], set(caption)
        named = sum(not said.isdisjoint(words_for) for words_for in sure) / max(len(sure), 1)
        return self.reward(photograph, caption) + self.config.tag_reward * named
