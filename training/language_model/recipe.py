"""The language-model recipe: truncated back-propagation through time over one long stream of tokens.

    config = PRESETS["small"]
    train(config, corpus, Run(Path("runs/small")))

Fabric, not Lightning's Trainer: the carried state, the exact resume inside an epoch and the chapter's cost are each one
line of a flat loop.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.errors import CorpusError, SettingsError
from app.models.language_model import LanguageModel
from app.models.recurrent import Cell
from training.corpora.files import release
from training.language_model.data import Corpus, Ids
from training.language_model.objective import Objective
from training.ranges import (
    BelowOne,
    Count,
    CountFrom0,
    Counts,
    Finite,
    NotNegative,
    Positive,
    Seed,
    at_least,
    require_ranges,
)
from training.run import Run
from training.session import Carried, Session


@dataclass(frozen=True)
class LanguageModelConfig:
    """Hyperparameters of a run. Defaults are the chapter's (CHAPTER.md: language model).

    Raise SettingsError that names every field out of its range.
    """

    vocabulary_size: Annotated[int, at_least(2)] = 10_000  # most frequent tokens, <eos> and <unk> among them
    embedding_size: Count = 200  # numbers of a token's embedding
    cell: Cell = "lstm"  # of the recurrent layers: see app.models.recurrent
    hidden_sizes: Counts = (200, 200)  # units of each layer
    tied: bool = False  # the output layer is the embedding
    initial_range: NotNegative = 0.05  # weights uniform in ±this
    forget_bias: Finite = 1.0  # of the forget gates, at the start; rnn and gru have none

    input_dropout: BelowOne = 0.5  # of the embedded input
    hidden_dropout: BelowOne = 0.5  # between layers
    output_dropout: BelowOne = 0.5  # before the output layer
    weight_drop: BelowOne = 0.0  # of recurrent weights
    embedding_dropout: BelowOne = 0.0  # of whole words
    locked: bool = False  # one dropout mask for all steps of a window
    activation_penalty: NotNegative = 0.0  # AR of Merity et al. 2018
    change_penalty: NotNegative = 0.0  # TAR of Merity et al. 2018

    batch_size: Count = 20  # parallel streams
    steps: Count = 35  # tokens of a window of truncated back-propagation
    shifted: bool = False  # shift the windows' offset each epoch

    cost: Literal["sum", "mean"] = "sum"  # over the steps of a window; always the mean over the batch
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"  # adam and adamw: betas 0.8 and 0.99
    learning_rate: Positive = 1.0  # one-cycle: its peak
    schedule: Literal["constant", "halving", "one-cycle"] = "constant"  # of the learning rate
    constant_epochs: CountFrom0 = 0  # halving begins after these
    weight_decay: NotNegative = 0.0  # L2 for sgd and adam, decoupled for adamw
    clip: Positive = 5.0  # global gradient norm
    epochs: Count = 2  # passes over the training text
    precision: Literal["32-true", "bf16-mixed"] = "32-true"  # of the products
    seed: Seed = 1  # of weights and dropout
    evaluation_batch: Count = 1  # 1: exactly the whole text; more: faster, each stream starts without context

    def __post_init__(self) -> None:
        require_ranges(self)


PRESETS = {
    "chapter": LanguageModelConfig(),
    "small": LanguageModelConfig(
        initial_range=0.1,
        forget_bias=0.0,
        input_dropout=0.0,
        hidden_dropout=0.0,
        output_dropout=0.0,
        steps=20,
        schedule="halving",
        constant_epochs=4,
        epochs=13,
    ),
    "cpu": LanguageModelConfig(
        embedding_size=448,
        hidden_sizes=(896, 448),
        tied=True,
        input_dropout=0.3,
        hidden_dropout=0.2,
        output_dropout=0.3,
        weight_drop=0.3,
        embedding_dropout=0.05,
        locked=True,
        activation_penalty=2.0,
        change_penalty=1.0,
        batch_size=64,
        steps=70,
        shifted=True,
        cost="mean",
        optimiser="adamw",
        learning_rate=4e-3,
        schedule="one-cycle",
        weight_decay=0.05,
        clip=0.25,
        epochs=28,
        precision="bf16-mixed",
        evaluation_batch=16,
    ),
    "gpu": LanguageModelConfig(
        embedding_size=400,
        hidden_sizes=(1150, 1150, 400),
        tied=True,
        input_dropout=0.4,
        hidden_dropout=0.25,
        output_dropout=0.4,
        weight_drop=0.5,
        embedding_dropout=0.1,
        locked=True,
        activation_penalty=3.0,
        change_penalty=1.5,
        batch_size=100,
        steps=70,
        shifted=True,
        cost="mean",
        optimiser="adam",
        learning_rate=5e-3,
        schedule="one-cycle",
        weight_decay=1.2e-6,
        clip=0.12,
        epochs=90,
        precision="bf16-mixed",
        evaluation_batch=16,
    ),
}


def train(
    config: LanguageModelConfig, corpus: Corpus, run: Run, *, resume: bool = False, minutes: float = math.inf
) -> bool:
    """Train into `run`, with `resume` from its checkpoint if there is one; True when the last epoch is done.

    Every draw of a step depends on the seed and the step's number alone, so a resumed run ends with the weights of an
    undisturbed one. `minutes` bounds this piece of the work.
    """
    session = Session(run, config.precision, config.seed, minutes, "auto")
    fabric, streams = session.fabric, session.share(config.batch_size)
    model = build(config)
    windows = _window_count(len(corpus.train), config)
    optimiser = _optimiser(model, config)
    schedule = _schedule(optimiser, config, windows)
    objective = Objective(model, config.activation_penalty, config.change_penalty)
    wrapped, optimiser = fabric.setup(objective, optimiser)
    state: dict[str, Any] = {
        "model": model,
        "optimiser": optimiser,
        "schedule": schedule,
        "progress": {"epoch": 0, "window": 0, "cost": 0.0, "rate": 0.0, "carried": None},
    }
    progress = session.open("language_model", config, corpus.describe(), state, resume=resume)

    for epoch in range(progress["epoch"], config.epochs):
        started, first = time.monotonic(), progress["window"]
        carried = progress["carried"] or model.initial_state(streams.stop - streams.start)
        batches = islice(_windows(corpus.train, config, epoch, streams), first, None)
        bar = session.bar(batches, f"epoch {epoch + 1}/{config.epochs}", first, windows)
        for window, (inputs, targets) in enumerate(bar, first):
            step = epoch * windows + window
            session.seed_step(step)
            model.train()
            # Through Fabric's wrapper, which synchronises the gradients where there are several processes.
            cost, penalty, after = wrapped(fabric.to_device(inputs), fabric.to_device(targets), Carried(carried))
            loss = cost * len(inputs) if config.cost == "sum" else cost
            optimiser.zero_grad()
            fabric.backward(loss + penalty)
            norm = fabric.clip_gradients(wrapped, optimiser, max_norm=config.clip)
            optimiser.step()
            rate = optimiser.param_groups[0]["lr"]
            schedule.step()

            carried, cost_sum = after.state, progress["cost"] + session.mean(cost)
            progress.update(epoch=epoch, window=window + 1, cost=cost_sum, rate=rate, carried=carried)
            if step % 100 == 0:
                running = math.exp(progress["cost"] / (window + 1))
                bar.set_postfix_str(f"perplexity {running:.1f}")
                fabric.log_dict({"perplexity/train": running, "gradient_norm": norm, "rate": rate}, step)
            if session.stops(state):
                return False

        seconds = time.monotonic() - started
        metrics = {
            "epoch": epoch + 1,
            "train_perplexity": math.exp(progress["cost"] / windows),
            "valid_perplexity": perplexity(model, corpus.valid, corpus.vocabulary.end, config.evaluation_batch),
            "learning_rate": progress["rate"],
            "seconds": seconds,
            "tokens_per_second": (windows - first) * config.batch_size * config.steps / seconds,
        }
        session.record(metrics, (epoch + 1) * windows)
        progress.update(epoch=epoch + 1, window=0, cost=0.0, carried=None)
        session.save(state)
    session.finish({"test_perplexity": perplexity(model, corpus.test, corpus.vocabulary.end, config.evaluation_batch)})
    return True


def build(config: LanguageModelConfig) -> LanguageModel:
    """Return the module of `config`, newly initialised; SettingsError if it is impossible."""
    try:
        return LanguageModel(
            vocabulary_size=config.vocabulary_size,
            embedding_size=config.embedding_size,
            hidden_sizes=config.hidden_sizes,
            tied=config.tied,
            cell=config.cell,
            initial_range=config.initial_range,
            forget_bias=config.forget_bias,
            input_dropout=config.input_dropout,
            hidden_dropout=config.hidden_dropout,
            output_dropout=config.output_dropout,
            weight_drop=config.weight_drop,
            embedding_dropout=config.embedding_dropout,
            locked=config.locked,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


@torch.inference_mode()
def perplexity(model: nn.Module, ids: Ids, end: int, batch_size: int = 1, steps: int = 512) -> float:
    """exp(mean negative log-likelihood) of `ids`, the first predicted as after an `<eos>`.

    The text is cut into `batch_size` contiguous streams; with 1 the state is carried through all of it, as the chapter
    evaluates. Each further stream starts as after an `<eos>` too, which raises the perplexity a little.
    """
    model.eval()
    device = next(model.parameters()).device
    batch_size = min(batch_size, len(ids))
    length = len(ids) // batch_size
    streams = _streams(ids, batch_size, length)
    before = torch.full((1, batch_size), end, device=device)
    state, total = model.initial_state(batch_size), 0.0  # type: ignore[operator]
    for start in range(0, length, steps):
        expected = _cut(streams, start, start + steps).to(device)
        hidden, _, state = model(torch.cat([before, expected[:-1]]), state)
        logits = model.logits(hidden).float().flatten(0, 1)  # type: ignore[operator]
        total += F.cross_entropy(logits, expected.flatten(), reduction="sum").item()
        before = expected[-1:]
    return math.exp(total / (length * batch_size))


def _windows(ids: Ids, config: LanguageModelConfig, epoch: int, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets), each (steps, B): the `rows` of batch_size contiguous streams, window after window."""
    count = _window_count(len(ids), config)
    slack = len(ids) - 1 - count * config.steps * config.batch_size if config.shifted else 0
    offset = np.random.default_rng([config.seed, epoch]).integers(slack + 1)
    length = count * config.steps
    inputs = _streams(ids[offset:], config.batch_size, length)[rows]
    targets = _streams(ids[offset + 1 :], config.batch_size, length)[rows]
    for start in range(0, length, config.steps):
        yield _cut(inputs, start, start + config.steps), _cut(targets, start, start + config.steps)


def _streams(ids: Ids, batch_size: int, length: int) -> Ids:
    """Return the first batch_size * length ids as contiguous streams, one a row, still on disk."""
    return ids[: batch_size * length].reshape(batch_size, length)


def _cut(streams: Ids, start: int, end: int) -> Tensor:
    """Return steps `start` to `end` of all streams, read into memory: (end - start, batch_size)."""
    steps = torch.from_numpy(streams[:, start:end].T.astype(np.int64))
    release(streams)
    return steps


def _window_count(tokens: int, config: LanguageModelConfig) -> int:
    window = config.batch_size * config.steps
    if tokens <= window:
        raise CorpusError(f"training text: expected more than {window} tokens, found {tokens}")
    return (tokens - 1) // window


def _optimiser(model: nn.Module, config: LanguageModelConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimiser:
        case "sgd":
            return torch.optim.SGD(model.parameters(), rate, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(model.parameters(), rate, (0.8, 0.99), weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(model.parameters(), rate, (0.8, 0.99), weight_decay=decay, fused=True)


def _schedule(
    optimiser: torch.optim.Optimizer, config: LanguageModelConfig, windows: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.learning_rate, config.epochs * windows, base_momentum=0.7, max_momentum=0.8
        )
    halving = config.schedule == "halving"
    return torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 ** max(step // windows + 1 - config.constant_epochs, 0) if halving else 1.0
    )
