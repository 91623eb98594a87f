"""The losses of both phases: cross-entropy, then self-critical sequence training."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.captioner import Captioner
from training.captions.config import CaptionsConfig
from training.captions.dataset import IGNORED, Order, TrainingSet
from training.captions.decoding import sample


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
        seen = self.training_set
        captions = seen.captions[chosen, : seen.lengths[chosen.numpy()].max() + 1]
        logits = self.model(seen.sample_features(seen.photographs[chosen]), captions[:, :-1].clamp(min=0))
        targets = captions[:, 1:].flatten()
        # In the logits' own precision, see training/LOG.md; sums are made in float32.
        losses = F.cross_entropy(
            logits.flatten(0, 1),
            targets,
            ignore_index=IGNORED,
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
        loss = losses.float().sum() / self.mean((targets != IGNORED).sum())
        return StepLoss(loss, loss)

    def _self_critical(self, photographs: Tensor) -> StepLoss:
        """Log-likelihoods of samples weighted by their advantage over the photograph's other samples.

        Samples are drawn and scored under the same dropout masks: the policy that learns is the one that sampled.
        """
        seen, count = self.training_set, self.config.samples
        features = seen.sample_features(photographs).repeat_interleave(count, 0)
        samples, likelihoods = sample(self.model, features, seen.vocabulary, self.config.length)
        owners = photographs.repeat_interleave(count).tolist()
        sampled = [[token for token in row if token != IGNORED] for row in samples[:, 1:].tolist()]
        rewards = torch.tensor([seen.reward(owner, caption) for owner, caption in zip(owners, sampled, strict=True)])
        rewards = rewards.view(-1, count)  # (B, K)
        advantage = (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)
        loss = -(likelihoods * advantage.flatten()).sum() / self.mean((samples[:, 1:] != IGNORED).sum())
        return StepLoss(loss, rewards.mean())
