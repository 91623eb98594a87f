"""Validation of an attentive captioner on whole photographs, collection by collection."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from app.images.tags import slots
from app.models.attentive_captioner import AttentiveCaptioner
from app.text import Vocabulary
from training.captions.attentive.config import AttentiveConfig
from training.captions.attentive.data import AttentiveCorpus
from training.captions.attentive.objective import seen
from training.captions.attentive.training_set import Photographs
from training.captions.dataset import Order
from training.captions.decoding import Caption, beam_search
from training.captions.scores import CiderD, score
from training.captions.validation import LENGTH_PENALTIES
from training.captions.vocabulary import words

BATCH = 128  # photographs that are captioned together
MOST = 300  # photographs of a collection that are captioned during training


@dataclass(frozen=True, eq=False)
class Collection:
    """The validation photographs of one collection."""

    name: str
    photographs: Order  # (N,): indices among those of all collections
    references: list[tuple[str, ...]]
    cider_d: CiderD

    def cider(self, captions: Sequence[str]) -> float:
        """Mean CIDEr-D in percent of captions of the first photographs, with our own tokenizer."""
        return 100 * float(np.mean([self.cider_d(number, caption.split()) for number, caption in enumerate(captions)]))


@dataclass(frozen=True)
class Validation:
    """The validation split."""

    photographs: Photographs
    collections: list[Collection]
    vocabulary: Vocabulary

    @classmethod
    def of(cls, corpus: AttentiveCorpus) -> "Validation":
        """Take all validation photographs."""
        split, found = corpus.splits["val"], list[Collection]()
        for index, source in enumerate(corpus.sources):
            members = np.flatnonzero(np.array(split.collections) == index)
            if len(members):
                references = [split.captions[member] for member in members]
                cider_d = CiderD([[words(caption) for caption in group] for group in references])
                found.append(Collection(source.name, members, references, cider_d))
        return cls(Photographs.of(split), found, corpus.vocabulary)

    @torch.inference_mode()
    def captions(
        self,
        model: AttentiveCaptioner,
        config: AttentiveConfig,
        photographs: Order,
        penalty: float,
        *,
        tags: bool = True,
    ) -> list[str]:
        """Caption photographs by beam search, without `tags` as if no detector ran; spaces separate words."""
        model.eval()
        found = list[Caption]()
        for start in range(0, len(photographs), BATCH):
            chosen = photographs[start : start + BATCH]
            none = None if tags else np.broadcast_to(slots(()), (len(chosen), *slots(()).shape)).copy()
            decoder = seen(model, self.photographs.scene(chosen, 0, none))
            found += beam_search(decoder, self.vocabulary, config.beam_width, config.length, length_penalty=penalty)
        return [" ".join(self.vocabulary.tokens[token] for token in caption.tokens) for caption in found]

    def during_training(self, model: AttentiveCaptioner, config: AttentiveConfig) -> dict[str, float]:
        """CIDEr-D of the first photographs of each collection, their mean, and the share of distinct captions."""
        captioned = {
            each: self.captions(model, config, each.photographs[:MOST], config.length_penalty)
            for each in self.collections
        }
        ciders = {each.name: each.cider(captions) for each, captions in captioned.items()}
        everything = [caption for captions in captioned.values() for caption in captions]
        return {
            "valid_cider": float(np.mean([*ciders.values()])),
            **{f"valid_cider_{name}": value for name, value in ciders.items()},
            "valid_distinct": len(set(everything)) / len(everything),
        }

    def results(self, model: AttentiveCaptioner, config: AttentiveConfig) -> dict[str, Any]:
        """The length penalty of the best mean CIDEr-D, and each collection's standard scores with it."""
        tried = {
            penalty: [self.captions(model, config, each.photographs, penalty) for each in self.collections]
            for penalty in LENGTH_PENALTIES
        }
        chosen = max(LENGTH_PENALTIES, key=lambda penalty: self._mean_cider(tried[penalty]))
        measured: dict[str, Any] = {"length_penalty": chosen, "valid_cider": self._mean_cider(tried[chosen])}
        for each, captions in zip(self.collections, tried[chosen], strict=True):
            scores = asdict(score(captions, each.references))
            measured |= {f"valid_{name}_{each.name}": value for name, value in scores.items()}
            untagged = self.captions(model, config, each.photographs, chosen, tags=False)
            measured[f"valid_untagged_cider_{each.name}"] = each.cider(untagged)
        return measured

    def _mean_cider(self, captions: Sequence[list[str]]) -> float:
        return float(np.mean([each.cider(found) for each, found in zip(self.collections, captions, strict=True)]))
