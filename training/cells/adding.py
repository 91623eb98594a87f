"""The adding problem: memory of a cell over a known distance (Hochreiter & Schmidhuber 1997, experiment 4).

In the form of Le et al. 2015 (arXiv 1504.00941): at every step a number drawn from 0..1 and a mark, 1 at two steps,
one in each half of the sequence, and 0 at all others; the target after the last step is the sum of the two marked
numbers. Always answering 1 has a mean squared error of 1/6.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from app.models.recurrent import Cell, Layer, Recurrent
from training.ranges import POSITIVE, Count, Counts, Positive, Seed, at_least, require_ranges

BASELINE = 1 / 6  # mean squared error of the constant answer 1
SOLVED = 0.01  # mean squared error below which the problem counts as solved
TEST_SEED = 2**62  # of the test sequences; no step draws with it


@dataclass(frozen=True)
class AddingConfig:
    """Hyperparameters of a run.

    Raise SettingsError that names every field out of its range.
    """

    cell: Cell = "lstm"
    hidden_sizes: Counts = (64,)  # units of each layer
    length: Annotated[int, at_least(4)] = 400  # steps of a sequence
    steps: Count = 1_500  # of the optimiser, Adam
    batch_size: Count = 50  # new sequences a step
    learning_rates: Annotated[tuple[float, ...], POSITIVE] = (5e-3, 1e-3)  # tried in order until one solves the problem
    clip: Positive = 1.0  # global gradient norm
    measured_every: Count = 100  # steps
    measured_on: Count = 1_000  # sequences that are never trained on
    seed: Seed = 1  # of weights and sequences

    def __post_init__(self) -> None:
        require_ranges(self)


class Adder(nn.Module):
    """Recurrent layers and a linear one on the last step's output.

    Weights are uniform in ±1/sqrt(H), those of the two inputs in ±1: otherwise H recurrent ones would drown them
    at the start. The gates are biased as by `remember_for` the length of the sequences.
    """

    def __init__(self, config: AddingConfig) -> None:
        super().__init__()
        hidden_size = config.hidden_sizes[-1]
        self.recurrent = Recurrent(2, config.hidden_sizes, cell=config.cell)
        self.output = nn.Linear(hidden_size, 1)
        self.recurrent.reset(hidden_size**-0.5, 0.0)
        nn.init.uniform_(self.recurrent.layers[0].weight_ih, -1, 1)  # type: ignore[arg-type]
        for layer in self.recurrent.layers:
            remember_for(layer, config.length)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        """(T, B, 2) -> answers (B,)."""
        outputs, _ = self.recurrent(inputs)
        return self.answer(outputs[-1])

    def answer(self, hidden: Tensor) -> Tensor:
        """The last step's output (B, H) -> answers (B,)."""
        answers: Tensor = self.output(hidden).squeeze(-1)
        return answers


def remember_for(layer: Layer, length: int) -> None:
    """Bias the gates so that units forget within 1 to `length` steps at first: chrono initialisation.

    A unit that keeps the share f of its state each step forgets within 1 / (1 - f) steps. With t drawn from
    1..length - 1 the bias of the gate that keeps is ln t, that of the gate that admits -ln t (Tallec & Ollivier
    2018, arXiv 1804.11188): f and i of an LSTM, i of coupled gates, z of a GRU. A tanh RNN has no gate.
    """
    size = layer.hidden_size
    logarithms = torch.empty(size, device=layer.bias.device).uniform_(1, length - 1).log()
    with torch.no_grad():
        match layer.cell:
            case "lstm" | "peephole":
                layer.bias[: 2 * size] = torch.cat([-logarithms, logarithms])
            case "cifg" | "peephole-cifg":
                layer.bias[:size] = -logarithms
            case "gru":
                layer.bias[size : 2 * size] = logarithms


def sequences(count: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """(length, count, 2) values and marks, and the target sums (count,)."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.rand(length, count, generator=draw)
    marks, half, each = torch.zeros(length, count), length // 2, torch.arange(count)
    marks[torch.randint(half, (count,), generator=draw), each] = 1
    marks[torch.randint(half, length, (count,), generator=draw), each] = 1
    return torch.stack([values, marks], -1), (values * marks).sum(0)


@dataclass(frozen=True)
class Trial:
    """The result of training at one learning rate."""

    learning_rate: float
    model: Adder
    curve: list[tuple[int, float]]  # (step, mean squared error on unseen sequences), the last step's at the end

    @property
    def error(self) -> float:
        """Return the error of the trained module."""
        return self.curve[-1][1]


def solve(config: AddingConfig) -> list[Trial]:
    """One trial a learning rate, up to the first that solves the problem."""
    trials = []
    for rate in config.learning_rates:
        trials.append(train(config, rate))
        if trials[-1].error < SOLVED:
            break
    return trials


def train(config: AddingConfig, learning_rate: float) -> Trial:
    """Train to the last step. Every draw of a step depends on the seed and the step's number alone."""
    model = build(config)
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    unseen = sequences(config.measured_on, config.length, TEST_SEED)
    curve = [(0, error(model, *unseen))]
    for step in tqdm(range(1, config.steps + 1), f"adding {config.cell} {config.length}", mininterval=1):
        inputs, sums = sequences(config.batch_size, config.length, config.seed * 1_000_003 + step)
        cost = F.mse_loss(model(inputs), sums)
        optimiser.zero_grad()
        cost.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimiser.step()
        if step % config.measured_every == 0 or step == config.steps:
            curve.append((step, error(model, *unseen)))
    return Trial(learning_rate, model, curve)


def build(config: AddingConfig) -> Adder:
    """Return the module of `config`, initialised from its seed."""
    torch.manual_seed(config.seed)
    return Adder(config)


@torch.inference_mode()
def error(model: Adder, inputs: Tensor, sums: Tensor) -> float:
    """Mean squared error of the answers to `inputs` (T, N, 2)."""
    return F.mse_loss(model(inputs), sums).item()


def solved_at(curve: Sequence[tuple[int, float]]) -> int | None:
    """The step of the first measured error below SOLVED that no larger one follows; None if there is none."""
    solved = None
    for step, found in curve:
        if not found < SOLVED:
            solved = None
        elif solved is None:
            solved = step
    return solved
