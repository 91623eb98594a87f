"""The training split as tensors, and the batches of an epoch."""

from collections.abc import Sequence
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
        captions, lengths = padded([caption for group in ids for caption in group], config.length, vocabulary.end)
        reward = CiderD(ids)
        return cls(torch.from_numpy(split.features), captions, torch.tensor(owners), lengths, reward, vocabulary)

    def caption_batches(self, config: CaptionsConfig, epoch: int) -> list[Order]:
        """Batches of caption indices, shuffled by epoch; the captions of a batch have similar lengths."""
        return by_length(self.lengths, config.batch_size, np.random.default_rng([config.seed, epoch]))

    def photograph_batches(self, config: CaptionsConfig, epoch: int) -> list[Order]:
        """Batches of photograph indices, shuffled by epoch."""
        order = np.random.default_rng([config.seed, epoch]).permutation(len(self.features))
        return _parts(order, config.reward_batch)

    def sample_features(self, photographs: Tensor) -> Tensor:
        """Features (B, F) of photographs, each of a random view."""
        return self.features[photographs, torch.randint(self.features.shape[1], photographs.shape)]


def padded(captions: Sequence[Sequence[int]], length: int, end: int) -> tuple[Tensor, Order]:
    """Return captions (C, length + 2) as of `TrainingSet`, cut after `length` words, and their lengths (C,)."""
    rows = np.full((len(captions), length + 2), IGNORED)
    rows[:, 0] = end
    for row, caption in zip(rows, captions, strict=True):
        row[1 : len(caption) + 1] = caption[: length + 1]
    return torch.from_numpy(rows), (rows[:, 1:] != IGNORED).sum(1)


def by_length(lengths: Order, size: int, draw: np.random.Generator) -> list[Order]:
    """Return shuffled batches of indices, each of captions of similar lengths."""
    pools = _parts(draw.permutation(len(lengths)), POOL * size)
    ranked = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    batches = _parts(ranked, size)
    return [batches[index] for index in draw.permutation(len(batches))]


def _parts(order: Order, size: int) -> list[Order]:
    return [order[start : start + size] for start in range(0, len(order), size)]
