"""The losses of both phases: cross-entropy on captions and sentences, then self-critical sequence training."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from app.models.attentive_captioner import AttentiveCaptioner, Scene
from training.captions.attentive.training_set import TrainingSet
from training.captions.dataset import IGNORED
from training.captions.decoding import Decoder, sample
from training.captions.objective import StepLoss, cost, rewarded, scst_loss


def seen(model: AttentiveCaptioner, scene: Scene) -> Decoder:
    """Return the decoder of photographs."""
    state, memory = model.begin(scene)

    def step(tokens: Tensor, state: Tensor, photographs: Tensor) -> tuple[Tensor, Tensor]:
        log_probabilities, after, _ = model.step(tokens, state, memory.rows(photographs))
        return log_probabilities, after

    return Decoder(state, step)


class Objective(nn.Module):
    """The captioner and both phases' losses: one forward pass does all that needs a gradient.

    `mean` returns a number's mean over the ranks, whose parts of a batch may have more or fewer words.
    """

    def __init__(self, model: AttentiveCaptioner, training_set: TrainingSet, mean: Callable[[Tensor], float]) -> None:
        super().__init__()
        self.model = model
        self.training_set = training_set
        self.mean = mean

    def forward(self, step: int, part: slice, random: np.random.Generator, *, reward: bool) -> StepLoss:
        """Return the loss of a step's batches, of which this rank takes a `part`."""
        self.model.train()
        return self._self_critical(step, part, random) if reward else self._cross_entropy(step, part, random)

    def _cross_entropy(self, step: int, part: slice, random: np.random.Generator) -> StepLoss:
        """Cross-entropy of captions and sentences, the mean over all their words; the metric is that of captions."""
        known = self.training_set
        scene, captions = _part(*known.caption_batch(step, random), part)
        total, count = cost(self.model(scene, captions[:, :-1].clamp(min=0)), captions), _words(captions)
        metric = total.detach() / count
        if known.config.text_batch:
            scene, captions = _part(*known.sentence_batch(step, random), part)
            total = total + cost(self.model(scene, captions[:, :-1].clamp(min=0)), captions)
            count = count + _words(captions)
        return StepLoss(total / self.mean(count), metric)

    def _self_critical(self, step: int, part: slice, random: np.random.Generator) -> StepLoss:
        """The self-critical loss of samples, drawn and scored under the same dropout masks."""
        known, count = self.training_set, self.training_set.config.samples
        scene, photographs = known.reward_batch(step, random)
        rows = torch.arange(len(photographs))[part].repeat_interleave(count)
        samples, likelihoods = sample(seen(self.model, scene.rows(rows)), known.vocabulary, known.config.length)
        rewards = rewarded(samples, photographs[rows.numpy()].tolist(), known.score)
        return scst_loss(samples, likelihoods, rewards, count, self.mean)


def _part(scene: Scene, captions: Tensor, part: slice) -> tuple[Scene, Tensor]:
    rows = torch.arange(len(captions))[part]
    return scene.rows(rows), captions[rows]


def _words(captions: Tensor) -> Tensor:
    """The number of words and ends, ()."""
    return (captions[:, 1:] != IGNORED).sum()
