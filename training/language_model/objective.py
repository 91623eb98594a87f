"""The training objective of language models: cross-entropy and penalties on activations."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.models.language_model import LanguageModel, detached
from training.session import Carried


class Objective(nn.Module):
    """The language model, its cross-entropy and penalties: one forward pass does all that needs a gradient.

    The penalties are activation regularisation and its temporal form (Merity et al. 2017, arXiv 1708.01009).
    """

    def __init__(self, model: LanguageModel, activation_penalty: float, change_penalty: float) -> None:
        super().__init__()
        self.model = model
        self.activation_penalty = activation_penalty
        self.change_penalty = change_penalty

    def forward(self, inputs: Tensor, targets: Tensor, before: Carried) -> tuple[Tensor, Tensor | float, Carried]:
        """Inputs and targets (T, B), states before -> mean cross-entropy (), penalty (), states after, detached."""
        hidden, raw, after = self.model(inputs, before.state)  # (T, B) -> hidden (T, B, H)
        logits = self.model.logits(hidden).flatten(0, 1)  # (T, B, H) -> (T * B, V)
        # In the logits' own precision: float32 would add a third to a bf16 step and move the gradient by 0.3 %.
        with torch.autocast(logits.device.type, enabled=False):
            costs = F.cross_entropy(logits, targets.flatten(), reduction="none")
        penalty: Tensor | float = 0.0
        if self.activation_penalty:
            penalty += self.activation_penalty * hidden.float().square().mean()
        if self.change_penalty:
            penalty += self.change_penalty * raw.float().diff(dim=0).square().mean()
        return costs.float().mean(), penalty, Carried(detached(after))
