"""The number recipe: a bidirectional LSTM over columns with CTC, on numbers composed of MNIST's digits.

config = PRESETS["numbers"]
train(config, corpus, Run(Path("runs/numbers")))
"""

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from app.models.digits import SIDE
from app.models.numbers import BLANK, NumberReader
from app.models.recurrent import Cell
from app.runtime.ctc import best_path
from training.digits.data import DigitCorpus, Digits
from training.digits.numbers import MAX_DIGITS, NONE, training_strips
from training.ranges import BelowOne, Count, Counts, NotNegative, Positive, Seed, require_ranges
from training.run import Run
from training.session import Session

LOGGED_EVERY = 10  # steps
EPOCH = 32_000  # strings between two measurements
VALIDATION = 480  # strings


@dataclass(frozen=True)
class NumbersConfig:
    """Hyperparameters of a run. Raise SettingsError that names every field out of its range."""

    cell: Cell = "lstm"
    hidden_sizes: Counts = (64, 128)  # units a direction, of each layer
    columns: Count = 2  # pixels a step
    dropout: BelowOne = 0.2  # before every layer but the first, and before the linear layer

    samples: Count = 512_000  # strings seen
    batch_size: Count = 64  # strings a step, all of one length
    learning_rate: Positive = 4e-3  # peak of one cycle
    weight_decay: NotNegative = 0.01
    clip: Positive = 1.0  # global gradient norm
    average: BelowOne = 0.995  # decay a step of the average of weights that is validated and published
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"  # of the products
    seed: Seed = 1

    def __post_init__(self) -> None:
        require_ranges(self)


PRESETS = {"numbers": NumbersConfig()}


def train(
    config: NumbersConfig, corpus: DigitCorpus, run: Run, *, resume: bool = False, minutes: float = math.inf
) -> bool:
    """Train into `run`, with `resume` from its checkpoint if there is one; return True after the last string.

    A step's strings depend on the seed and the step alone. `minutes` limits the duration of this call.
    """
    session = Session(run, config.precision, config.seed, minutes, "cpu")
    fabric, part = session.fabric, session.share(config.batch_size)
    model = build(config)
    optimiser: torch.optim.Optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    steps = math.ceil(config.samples / config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, steps, pct_start=0.15)
    wrapped, optimiser = fabric.setup(model, optimiser)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))  # type: ignore[no-untyped-call]
    state: dict[str, Any] = {
        "model": model,
        "averaged": averaged,
        "optimiser": optimiser,
        "schedule": schedule,
        "progress": {"step": 0, "cost": 0.0},
    }
    progress = session.open("numbers", config, corpus.describe(), state, resume=resume)
    started, first = time.monotonic(), progress["step"]
    epoch_steps = max(EPOCH // config.batch_size, 1)
    validation = [
        strips(corpus.valid, VALIDATION // MAX_DIGITS, length, np.random.default_rng([0, length])) for length in LENGTHS
    ]

    for step in session.bar(range(first, steps), "steps", first, steps):
        rng = session.seed_step(step)
        length = int(rng.integers(1, MAX_DIGITS + 1))
        images, labels = strips(corpus.train, part.stop - part.start, length, rng)
        model.train()
        cost = ctc_loss(wrapped(fabric.to_device(images)), fabric.to_device(labels))
        optimiser.zero_grad()
        fabric.backward(cost)
        fabric.clip_gradients(wrapped, optimiser, max_norm=config.clip)
        optimiser.step()
        rate = optimiser.param_groups[0]["lr"]
        schedule.step()
        averaged.update_parameters(model)
        mean_cost = session.mean(cost)
        progress.update(step=step + 1, cost=progress["cost"] + mean_cost)
        if step % LOGGED_EVERY == 0:
            fabric.log_dict({"cost/train": mean_cost, "rate": rate}, step)
        if (step + 1) % epoch_steps == 0 or step + 1 == steps:
            metrics = {
                "epoch": math.ceil((step + 1) / epoch_steps),
                "train_cost": progress["cost"] / ((step % epoch_steps) + 1),
                **accuracies(averaged.module, validation),
                "learning_rate": rate,
                "strings_per_second": (step + 1 - first) * config.batch_size / (time.monotonic() - started),
            }
            session.record(metrics, step)
            progress.update(cost=0.0)
            session.save(state)
        if session.stops(state):
            return False
    session.finish(accuracies(averaged.module, validation))
    return True


LENGTHS = range(1, MAX_DIGITS + 1)


def build(config: NumbersConfig) -> NumberReader:
    """Return the initialised module of `config`."""
    return NumberReader(config.hidden_sizes, columns=config.columns, cell=config.cell, dropout=config.dropout)


def strips(digits: Digits, count: int, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Compose strips (count, 28, W) in 0..1 of numbers of one length, padded with ground; digits (count, length)."""
    made, labels = training_strips(digits, length, count, rng)
    images = np.zeros((count, SIDE, max(strip.shape[1] for strip in made)), np.uint8)
    for image, strip in zip(images, made, strict=True):
        image[:, : strip.shape[1]] = strip
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels)


def ctc_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return CTC's mean negative log-likelihood a digit: logits (T, B, 11), labels (B, L), NONE in those of none."""
    steps, batch, _ = logits.shape
    lengths = (labels != NONE).sum(1)
    chances = logits.float().log_softmax(2)
    every = torch.full((batch,), steps)
    return F.ctc_loss(chances, labels.clamp_min(0), every, lengths, BLANK, zero_infinity=True)


@torch.inference_mode()
def accuracies(model: nn.Module, validation: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the shares of strings, and of strings of five digits, that are read without a fault."""
    model.eval()
    right = []
    for images, labels in validation:
        paths = [best_path(logits).digits for logits in model(images).numpy().transpose(1, 0, 2)]
        numbers = [[digit for digit in label if digit != NONE] for label in labels.tolist()]
        right.append(float(np.mean([path == number for path, number in zip(paths, numbers, strict=True)])))
    return {"valid_accuracy": float(np.mean(right)), "valid_accuracy_5": right[4]}
