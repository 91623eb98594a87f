"""Validation of a captioner on whole photographs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.models.captioner import Captioner
from app.text import Vocabulary
from training.captions.config import CaptionsConfig
from training.captions.data import CaptionCorpus
from training.captions.decoding import Caption, beam_search, seen
from training.captions.scores import CiderD, score
from training.captions.vocabulary import words

BATCH = 256  # photographs that are captioned together
LENGTH_PENALTIES = (0.0, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5)  # tried after training


@dataclass(frozen=True)
class Validation:
    """The validation split: whole photographs and their reference captions."""

    features: Tensor  # (N, F)
    references: tuple[tuple[str, ...], ...]
    cider_d: CiderD
    vocabulary: Vocabulary

    @classmethod
    def of(cls, corpus: CaptionCorpus) -> "Validation":
        """Take view 0 of each photograph."""
        split = corpus.splits["val"]
        cider_d = CiderD([[words(caption) for caption in group] for group in split.captions])
        return cls(torch.from_numpy(split.features[:, 0]), split.captions, cider_d, corpus.vocabulary)

    @torch.inference_mode()
    def captions(self, model: Captioner, config: CaptionsConfig, length_penalty: float) -> list[str]:
        """Caption each photograph by beam search; words are separated by spaces."""
        model.eval()
        found = list[Caption]()
        for part in torch.split(self.features, BATCH):
            decoder = seen(model, part)
            found += beam_search(
                decoder, self.vocabulary, config.beam_width, config.length, length_penalty=length_penalty
            )
        return [" ".join(self.vocabulary.tokens[token] for token in caption.tokens) for caption in found]

    def cider(self, captions: Sequence[str]) -> float:
        """Mean CIDEr-D in percent, with our own tokenizer."""
        return 100 * float(np.mean([self.cider_d(number, caption.split()) for number, caption in enumerate(captions)]))

    def results(self, model: Captioner, config: CaptionsConfig) -> dict[str, Any]:
        """The length penalty of the best CIDEr-D, and the standard scores with it."""
        tried = {penalty: self.captions(model, config, penalty) for penalty in LENGTH_PENALTIES}
        chosen = max(LENGTH_PENALTIES, key=lambda penalty: self.cider(tried[penalty]))
        scores = asdict(score(tried[chosen], self.references))
        measured = {f"valid_{name}": value for name, value in scores.items()}
        return {"length_penalty": chosen, **measured, "valid_distinct": len(set(tried[chosen]))}
