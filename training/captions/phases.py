"""Steps that the captioners' recipes share: the two phases of training and their learning rates."""

from typing import Final, TypeAlias

import torch
from torch import Tensor

from app.models.attentive_captioner import AttentiveCaptioner
from app.models.captioner import Captioner
from training.captions.config import CaptionerConfig

WARM: Final = 0.05  # share of a phase in which the learning rate rises to its peak; then it falls, in a line, to 0

Model: TypeAlias = Captioner | AttentiveCaptioner
Weights: TypeAlias = dict[str, Tensor]


def adamw(model: Model, config: CaptionerConfig) -> torch.optim.Optimizer:
    """Return the optimiser of both phases."""
    return torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True)


def copy_weights(model: Model) -> Weights:
    """Return the module's weights, which later steps leave as they are."""
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def start_reward_phase(
    model: Model, average: Model, optimiser: torch.optim.Optimizer, weights: Weights, temperature: float
) -> None:
    """Load the best weights, sharpen them and reset the optimiser."""
    for each in (model, average):
        each.load_state_dict(weights)
        each.sharpen(temperature)
    optimiser.state.clear()


def phase_rate(config: CaptionerConfig, done: float, first: int, second: int, ahead: float = 0.0) -> float:
    """Return the learning rate after `done` steps or epochs of phases of `first` and `second` ones.

    In each, it is a linear warm-up to the phase's peak, `ahead` by a share of the phase, then linear decay to 0.
    """
    peak, done = (config.learning_rate, done / first) if done < first else (config.reward_rate, (done - first) / second)
    return peak * min((done + ahead) / WARM, (1 - done) / (1 - WARM), 1.0)
