"""The subword language-model recipe: a stack of gated linear recurrences over documents of pieces.

    corpus = documents.load([Path("everyday2")], tokenizer)
    train(PRESETS["everyday"], corpus, Run(Path("runs/everyday")))

A run of unknown length: warm-up, a constant rate, then a decay over the last fifth of `steps` (Hägele et al. 2024,
arXiv 2405.18392). Until the decay begins nothing depends on `steps`: a resumed run may be given more or fewer. A
finished run may be given more too: the rate rises to its constant again (WSD-S, Wen et al. 2024, arXiv 2410.05192).
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from app.errors import CorpusError
from app.models.gated_recurrence import Block, GatedRecurrentLanguageModel, detached
from training.corpora.documents import DocumentCorpus, register_means
from training.corpora.epochs import Epoch, repeats
from training.language_model.bits_per_byte import bits_per_byte
from training.language_model.sampled_softmax import NegativeSampler, full_costs, piece_counts, sampled_costs
from training.ranges import (
    AT_LEAST_1,
    BelowOne,
    Count,
    CountFrom0,
    NotNegative,
    Positive,
    Probability,
    Seed,
    between,
    require_ranges,
)
from training.run import Run
from training.session import Carried, Session, update_average


@dataclass(frozen=True)
class SubwordLanguageModelConfig:
    """Hyperparameters of a run. Raise SettingsError that names every field out of its range."""

    vocabulary_size: Annotated[int, between(2, 65_536)] = 16_384  # pieces of the tokenizer
    embedding_size: Count = 320  # tied: of input and softmax
    width: Count = 384  # of the residual stream
    layers: Count = 6
    hidden_size: Count = 512  # of each recurrence
    inner_size: Count = 768  # of each gated MLP
    kernel: Count = 4  # steps that a convolution mixes before the gates; 1 for none
    longest_memory: NotNegative = 4.0  # the bias of z is drawn from minus this to 0
    dropout: BelowOne = 0.05  # of the embedded input and before the softmax, one mask a window

    batch_size: Count = 128  # streams read side by side
    window: Count = 70  # pieces through which the gradient goes back
    p_reset: Probability = 0.5  # a document starts from a zero state with this probability
    source_power: Probability = 0.7  # sources are read in proportion to words^this
    most_repeats: Annotated[float, AT_LEAST_1] = 2.0  # of a source in one pass
    lowered: Probability = 0.1  # share of lines in lower case

    steps: Count = 21_000  # may change until the decay begins, and after the last one
    warm_up: CountFrom0 = 500  # steps
    decay: Probability = 0.2  # share of the steps
    full_softmax: Probability = 0.1  # share of the steps, the last ones
    negatives: Count = 4_096  # of the sampled softmax before them
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 0.05  # decoupled, of matrices
    beta2: BelowOne = 0.98
    clip: Positive = 1.0  # global gradient norm
    average_every: Count = 10  # steps between two updates of the weights' average
    average_decay: BelowOne = 0.99  # of the average, an update
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"  # of the products
    compiled: bool = True  # blocks and softmax by torch.compile; needs a C++ compiler

    validate_every: Count = 1_000  # steps
    validation_pieces: Count = 8_000  # of each source during training; all at the end
    seed: Seed = 1

    def __post_init__(self) -> None:
        require_ranges(self)


EXTENDABLE = ("steps", "validate_every", "validation_pieces")
"""Fields that a resumed run may change."""

PRESETS = {"everyday": SubwordLanguageModelConfig()}


def train(
    config: SubwordLanguageModelConfig,
    corpus: DocumentCorpus,
    run: Run,
    *,
    resume: bool = False,
    minutes: float = math.inf,
) -> bool:
    """Train into `run`, with `resume` from its checkpoint if there is one; True when the last step is done.

    Every draw of a step depends on the seed and the step's number alone, so a resumed run ends with the weights of an
    undisturbed one. `minutes` bounds this part of the work.
    """
    session = Session(run, config.precision, config.seed, minutes, "cpu")
    fabric, streams = session.fabric, session.share(config.batch_size)
    model = build(config)
    optimiser = _optimiser(model, config)
    wrapped, optimiser = fabric.setup(Objective(model, corpus, config), optimiser)
    state: dict[str, Any] = {
        "model": model,
        "optimiser": optimiser,
        "average": {name: value.clone() for name, value in model.state_dict().items()},
        "progress": {"step": 0, "epoch": 0, "window": 0, "updates": 0, "carried": None},
    }
    source = corpus.describe()
    progress = session.open("language_model", config, source, state, resume=resume, changeable=EXTENDABLE)
    planned = run.read("config.json")["steps"]
    decayed = min(planned, config.steps) * (1 - max(config.decay, config.full_softmax))
    if decayed < progress["step"] < planned:
        run.check_config(config, EXTENDABLE[1:])
    if session.rank == 0:
        run.record_config(config)
    average, carried = state["average"], progress["carried"] or model.initial_state(streams.stop - streams.start)
    lap, started = list[float](), time.monotonic()

    for inputs, targets in _batches(corpus, config, progress, streams):
        step = progress["step"]
        session.seed_step(step)
        model.train()
        resets = (inputs == corpus.tokenizer.document) & (torch.rand(inputs.shape) < config.p_reset)
        cost, after = wrapped(inputs, targets, Carried(carried), resets, step)
        optimiser.zero_grad()
        fabric.backward(cost)
        fabric.clip_gradients(wrapped, optimiser, max_norm=config.clip)
        for group in optimiser.param_groups:
            group["lr"] = rate(config, step)
        optimiser.step()
        carried = after.state
        progress.update(step=step + 1, carried=carried)
        if (step + 1) % config.average_every == 0:
            progress["updates"] += 1
            update_average(average, model, progress["updates"], config.average_decay)
        lap.append(session.mean(cost))
        if (step + 1) % 100 == 0:
            speed = len(lap) * config.batch_size * config.window / (time.monotonic() - started)
            shown = f"cost {sum(lap) / len(lap):.4f}, {speed:.0f} pieces/s, rate {rate(config, step):.2e}"
            fabric.print(f"step {step + 1}/{config.steps}: {shown}", flush=True)
            lap, started = [], time.monotonic()
        if (step + 1) % config.validate_every == 0 and corpus.valid:
            with fabric.autocast():
                bits = evaluate(model, average, corpus, config.validation_pieces, config)
            pieces = (step + 1) * config.batch_size * config.window
            session.record({"epoch": step + 1, "pieces": pieces, **_metrics(bits)}, step + 1)
        if session.stops(state):
            return False
    session.save(state)
    session.finish(_metrics(evaluate(model, average, corpus, None, config)) if corpus.valid else {})
    return True


class Objective(nn.Module):
    """The language model and its cost, by the sampled softmax and, in the last steps, the full one."""

    def __init__(
        self, model: GatedRecurrentLanguageModel, corpus: DocumentCorpus, config: SubwordLanguageModelConfig
    ) -> None:
        super().__init__()
        self.model = model
        self.full_from = config.steps * (1 - config.full_softmax)
        counts = piece_counts([part.ids for part in corpus.train.values()], config.vocabulary_size)
        self.sampler = NegativeSampler(counts, min(config.negatives, config.vocabulary_size))
        self.sampled_costs, self.full_costs = sampled_costs, full_costs
        if config.compiled:
            self.sampled_costs, self.full_costs = (
                torch.compile(costs, dynamic=False) for costs in (sampled_costs, full_costs)
            )
            for block in model.blocks:  # before and after the recurrence, whose loop is its own function
                assert isinstance(block, Block)
                block.input.compile(dynamic=False)
                block.mixing.compile(dynamic=False)

    def forward(
        self, inputs: Tensor, targets: Tensor, before: Carried, resets: Tensor, step: int
    ) -> tuple[Tensor, Carried]:
        """Inputs, targets and resets (T, B), states before -> the mean cost (), states after, detached."""
        hidden, after = self.model(inputs, before.state, resets)  # (T, B) -> (T, B, E)
        rows, expected = hidden.flatten(0, 1), targets.flatten()
        weight, bias = self.model.embedding.weight, self.model.bias
        if step >= self.full_from:
            costs = self.full_costs(rows, expected, weight, bias)
        else:
            costs = self.sampler.costs(rows, expected, weight, bias, self.sampler.draw(), self.sampled_costs)
        return costs.mean(), Carried(detached(after))


def build(config: SubwordLanguageModelConfig) -> GatedRecurrentLanguageModel:
    """Return the module that `config` describes, freshly initialised."""
    return GatedRecurrentLanguageModel(
        vocabulary_size=config.vocabulary_size,
        embedding_size=config.embedding_size,
        width=config.width,
        layers=config.layers,
        hidden_size=config.hidden_size,
        inner_size=config.inner_size,
        kernel=config.kernel,
        longest_memory=config.longest_memory,
        dropout=config.dropout,
    )


def rate(config: SubwordLanguageModelConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, constant, then down to 0 as 1 - sqrt of the decay's part."""
    start = config.steps * (1 - config.decay)
    warm = min((step + 1) / config.warm_up, 1.0) if config.warm_up else 1.0
    part = max(step - start, 0.0) / max(config.steps - start, 1.0)
    return config.learning_rate * warm * (1 - math.sqrt(part))


def evaluate(
    model: GatedRecurrentLanguageModel,
    weights: Mapping[str, Tensor],
    corpus: DocumentCorpus,
    most: int | None,
    config: SubwordLanguageModelConfig,
) -> dict[str, float]:
    """Return bits a byte with `weights` by register, and `macro`: the mean over registers, assistant tasks apart.

    A register is the mean over its sources. `most`: pieces of each source, about, the same ones every time.
    """
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        sources = bits_per_byte(model, corpus, most, config.batch_size, config.window)  # shapes compiled already
    finally:
        model.load_state_dict(trained)
    return register_means(sources)


def _metrics(bits: Mapping[str, float]) -> dict[str, float]:
    return {f"valid_bits_per_byte/{name}": value for name, value in bits.items()}


def _batches(
    corpus: DocumentCorpus, config: SubwordLanguageModelConfig, progress: dict[str, Any], rows: slice
) -> Iterator[tuple[Tensor, Tensor]]:
    """The windows of all epochs from `progress` on, which is moved on before each, until the last step is done."""
    counts = repeats(corpus.train, config.source_power, config.most_repeats)
    while progress["step"] < config.steps:
        epoch = Epoch(corpus.train, counts, config.seed, progress["epoch"])
        for batch in _windows(epoch, config, progress["window"], rows):
            progress["window"] += 1
            yield batch
            if progress["step"] == config.steps:
                return
        progress.update(epoch=progress["epoch"] + 1, window=0)


def _windows(
    epoch: Epoch, config: SubwordLanguageModelConfig, first: int, rows: slice
) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets), each (window, B), from window `first` on: the `rows` of batch_size contiguous streams."""
    count = _window_count(len(epoch), config)
    positions = [(row * count + first) * config.window for row in range(rows.start, rows.stop)]
    for pieces in islice(epoch.windows(positions, config.window), count - first):
        window = torch.from_numpy(pieces.T.astype(np.int64))  # (window + 1, B)
        yield window[:-1], window[1:]


def _window_count(pieces: int, config: SubwordLanguageModelConfig) -> int:
    size = config.batch_size * config.window
    if pieces <= size:
        raise CorpusError(f"training text: expected more than {size} pieces, found {pieces}")
    return (pieces - 1) // size


def _optimiser(model: nn.Module, config: SubwordLanguageModelConfig) -> torch.optim.Optimizer:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.endswith("kernel")]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or name.endswith("kernel")]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.learning_rate, (0.9, config.beta2), fused=True)
