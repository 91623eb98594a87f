"""The training split as tensors, and the batches of an epoch."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.text import Vocabulary
from training.captions.config import CaptionsConfig
from training.captions.data import CaptionCorpus
from training.captions.scores import CiderD
from training.captions.vocabulary import words

Order: TypeAlias = npt.NDArray[np.int64]

IGNORED = -100  # the target of positions after a caption's end
POOL = 20  # batches' worth of captions that are sorted by length together


@dataclass(frozen=True)
class TrainingSet:
    """The training split as tensors."""

    features: Tensor  # (N, views, F)
    captions: Tensor  # (C, length + 2): <eos>, the words, <eos>, then IGNORED
    photographs: Tensor  # (C,): the index of each caption's photograph
    lengths: Order  # (C,)
    reward: CiderD  # of token ids with the <eos>, else captions without an end would score higher
    vocabulary: Vocabulary

    @classmethod
    def of(cls, corpus: CaptionCorpus, config: CaptionsConfig) -> "TrainingSet":
        """Tokenize the training split; captions longer than config.length are cut and have no end."""
        split, vocabulary = corpus.splits["train"], corpus.vocabulary
        ids = [[[*vocabulary.ids(words(caption)), vocabulary.end] for caption in group] for group in split.captions]
        owners = [number for number, group in enumerate(ids) for _ in group]
        cut = [caption[: config.length + 1] for group in ids for caption in group]
        captions = torch.full((len(cut), config.length + 2), IGNORED)
        captions[:, 0] = vocabulary.end
        for row, caption in zip(captions, cut, strict=True):
            row[1 : len(caption) + 1] = torch.tensor(caption)
        lengths = np.array([len(caption) for caption in cut])
        reward = CiderD(ids)
        return cls(torch.from_numpy(split.features), captions, torch.tensor(owners), lengths, reward, vocabulary)

    def caption_batches(self, config: CaptionsConfig, epoch: int) -> list[Order]:
        """Batches of caption indices, shuffled by epoch; the captions of a batch have similar lengths."""
        draw = np.random.default_rng([config.seed, epoch])
        order = draw.permutation(len(self.captions))
        pools = _parts(order, POOL * config.batch_size)
        ranked = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = _parts(ranked, config.batch_size)
        return [batches[index] for index in draw.permutation(len(batches))]

    def photograph_batches(self, config: CaptionsConfig, epoch: int) -> list[Order]:
        """Batches of photograph indices, shuffled by epoch."""
        order = np.random.default_rng([config.seed, epoch]).permutation(len(self.features))
        return _parts(order, config.reward_batch)

    def sample_features(self, photographs: Tensor) -> Tensor:
        """Features (B, F) of photographs, each of a random view."""
        return self.features[photographs, torch.randint(self.features.shape[1], photographs.shape)]


def _parts(order: Order, size: int) -> list[Order]:
    return [order[start : start + size] for start in range(0, len(order), size)]
