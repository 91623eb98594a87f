"""The losses of both phases: cross-entropy, then self-critical sequence training."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.captioner import Captioner
from training.captions.config import CaptionsConfig
from training.captions.dataset import IGNORED, Order, TrainingSet
from training.captions.decoding import sample, seen


class StepLoss(NamedTuple):
    """The loss of one training step, and the metric that is logged."""

    value: Tensor  # ()
    metric: Tensor  # (): nats a word, or the mean reward in CIDEr-D's 0 to 10


class Objective(nn.Module):
    """The captioner and both phases' losses: one forward pass does all that needs a gradient.

    `mean` returns a number's mean over the ranks, whose parts of a batch may have more or fewer words.
    """

    def __init__(
        self, model: Captioner, training_set: TrainingSet, config: CaptionsConfig, mean: Callable[[Tensor], float]
    ) -> None:
        super().__init__()
        self.model = model
        self.training_set = training_set
        self.config = config
        self.mean = mean

    def forward(self, batch: Order, *, rewarded: bool) -> StepLoss:
        """Return the loss of a batch of captions or, `rewarded`, of photographs."""
        self.model.train()
        chosen = torch.from_numpy(batch)
        return self._self_critical(chosen) if rewarded else self._cross_entropy(chosen)

    def _cross_entropy(self, chosen: Tensor) -> StepLoss:
        """Cross-entropy of captions (B,), the mean over their words and ends."""
        known = self.training_set
        captions = known.captions[chosen, : known.lengths[chosen.numpy()].max() + 1]
        logits = self.model(known.sample_features(known.photographs[chosen]), captions[:, :-1].clamp(min=0))
        loss = cost(logits, captions, self.config.label_smoothing) / self.mean((captions[:, 1:] != IGNORED).sum())
        return StepLoss(loss, loss)

    def _self_critical(self, photographs: Tensor) -> StepLoss:
        """Log-likelihoods of samples weighted by their advantage over the photograph's other samples.

        Samples are drawn and scored under the same dropout masks: the policy that learns is the one that sampled.
        """
        known, count = self.training_set, self.config.samples
        features = known.sample_features(photographs).repeat_interleave(count, 0)
        samples, likelihoods = sample(seen(self.model, features), known.vocabulary, self.config.length)
        rewards = rewarded(samples, photographs.repeat_interleave(count).tolist(), known.reward)
        return scst_loss(samples, likelihoods, rewards, count, self.mean)


def cost(logits: Tensor, captions: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy, summed over words and ends, of logits (B, T, V) for captions (B, T + 1)."""
    # In the logits' own precision, see training/LOG.md; sums are made in float32.
    losses = F.cross_entropy(
        logits.flatten(0, 1),
        captions[:, 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return losses.float().sum()


def rewarded(samples: Tensor, photographs: Sequence[int], reward: Callable[[int, list[int]], float]) -> Tensor:
    """Return the rewards (B,) of samples (B, length + 2), from each one's photograph and words with the end."""
    sampled = [[token for token in row if token != IGNORED] for row in samples[:, 1:].tolist()]
    return torch.tensor([reward(owner, caption) for owner, caption in zip(photographs, sampled, strict=True)])


def scst_loss(
    samples: Tensor, likelihoods: Tensor, rewards: Tensor, count: int, mean: Callable[[Tensor], float]
) -> StepLoss:
    """Return the self-critical loss of `count` samples a photograph, each with the others' mean as its baseline."""
    grouped = rewards.view(-1, count)  # (B, K)
    advantage = (grouped - grouped.mean(1, keepdim=True)) * count / (count - 1)
    loss = -(likelihoods * advantage.flatten()).sum() / mean((samples[:, 1:] != IGNORED).sum())
    return StepLoss(loss, rewards.mean())
