"""The captions recipe: a captioner trained by maximum likelihood, then by self-critical sequence training.

    config = PRESETS["best"]
    train(config, corpus, Run(Path("runs/best")))

First maximum likelihood; then, for `reward_epochs`, self-critical sequence training on CIDEr-D (Rennie et al. 2017,
arXiv 1612.00563) with several samples a photograph, each with the others' mean as its baseline (Kool et al. 2019).
After every epoch the averaged weights caption the validation photographs; the epoch with the best CIDEr is kept.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from app.errors import SettingsError
from app.models.captioner import Captioner, Inject
from app.models.recurrent import Cell
from app.text import Vocabulary
from training.captions.data import CaptionCorpus, words
from training.captions.scores import CiderD, score
from training.ranges import Range, require_ranges
from training.run import Run

Order: TypeAlias = npt.NDArray[np.int64]

IGNORED = -100  # the target of positions after a caption's end
WARM = 0.05  # share of a phase in which the learning rate rises to its peak; then it falls, in a straight line, to 0
POOL = 20  # batches' worth of captions that are sorted by length together
LENGTH_PENALTIES = (0.0, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5)  # tried on validation after training


@dataclass(frozen=True)
class CaptionsConfig:
    """Hyperparameters of a run. Defaults are the chapter's formula and plain maximum likelihood.

    Raise SettingsError that names every field out of its range.
    """

    backbone: str = "mobilenet_v2"  # torchvision's name of the CNN
    views: int = 8  # of each training photograph: whole, mirrored, random crops
    min_count: int = 5  # occurrences in the training captions that a word of the vocabulary needs
    cell: Cell = "lstm"  # of the decoder: see app.models.recurrent
    inject: Inject = "chapter"  # how the photograph enters: see app.models.captioner
    embedding_size: int = 256  # size of a word's embedding
    hidden_size: int = 512  # units of the recurrent layer
    tied: bool = False  # the output layer is the embedding

    feature_dropout: float = 0.0  # of the photograph's features
    input_dropout: float = 0.3  # of the embedded words
    output_dropout: float = 0.5  # before the output layer
    label_smoothing: float = 0.0  # share of the probability that is spread over all words
    averaging: float = 0.0  # decay a step of the average of the weights; 0: no average

    batch_size: int = 128  # captions
    epochs: int = 8  # passes over the captions
    learning_rate: float = 2e-3  # its peak
    weight_decay: float = 0.0  # decoupled (AdamW)
    clip: float = 5.0  # global gradient norm

    reward_epochs: int = 0  # passes over the photographs, with CIDEr-D as reward
    reward_batch: int = 50  # photographs
    samples: int = 5  # captions sampled for each
    temperature: float = 1.0  # the logits are divided by it when this phase starts: below 1, a sharper distribution
    reward_rate: float = 1e-4  # the learning rate's peak

    length: int = 20  # words of a caption, at most
    beam_width: int = 3  # in validation
    length_penalty: float = 0.7  # in validation after each epoch: see app.runtime.beam_search
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"  # of the products
    seed: int = 1  # of weights, order and all draws

    def __post_init__(self) -> None:
        require_ranges(self, _RANGES)


_RANGES: tuple[Range, ...] = (
    (
        "1 or more",
        lambda value: value >= 1,
        (
            "views",
            "min_count",
            "embedding_size",
            "hidden_size",
            "batch_size",
            "epochs",
            "reward_batch",
            "length",
            "beam_width",
        ),
    ),
    ("2 or more", lambda value: value >= 2, ("samples",)),
    (
        "0 or more and below 1",
        lambda value: 0 <= value < 1,
        ("feature_dropout", "input_dropout", "output_dropout", "label_smoothing", "averaging"),
    ),
    ("a number above 0", lambda value: 0 < value < math.inf, ("learning_rate", "clip", "temperature", "reward_rate")),
    (
        "a number from 0",
        lambda value: 0 <= value < math.inf,
        ("weight_decay", "reward_epochs", "length_penalty"),
    ),
    ("0 to 2^40", lambda value: 0 <= value <= 2**40, ("seed",)),  # times a million it still seeds torch
)

PRESETS = {
    "chapter": CaptionsConfig(),
    "best": CaptionsConfig(
        cell="gru",
        averaging=0.995,
        epochs=16,
        reward_epochs=10,
        temperature=0.5,
        reward_rate=2e-4,
    ),
}


def train(
    config: CaptionsConfig, corpus: CaptionCorpus, run: Run, *, resume: bool = False, minutes: float = math.inf
) -> bool:
    """Train into `run`, with `resume` from its checkpoint if there is one; return True after the last epoch.

    The checkpoint's `best` holds the weights to publish, result.json their length penalty and validation scores. Random
    numbers of a step depend on the seed and the step alone, so a resumed run ends with the weights of an uninterrupted
    one. `minutes` limits the duration of this call. The test split is not used.
    """
    fabric = Fabric(
        devices=1, precision=config.precision, loggers=TensorBoardLogger(run.folder, name="", version="tensorboard")
    )
    torch.manual_seed(config.seed)
    training_set = TrainingSet.of(corpus, config)
    valid = Validation.of(corpus)
    model, average = build(config, corpus), build(config, corpus)
    average.load_state_dict(model.state_dict())
    optimiser: torch.optim.Optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    wrapped, optimiser = fabric.setup(Objective(model, training_set, config), optimiser)
    fabric.to_device(average)
    progress: dict[str, Any] = {"epoch": 0, "batch": 0, "step": 0, "total": 0.0}
    best = {"epoch": 0, "cider": -1.0, "weights": _copy_weights(average)}
    state: dict[str, Any] = {
        "model": model,
        "average": average,
        "optimiser": optimiser,
        "progress": progress,
        "best": best,
    }
    if resume and run.checkpoint.exists():
        run.check_config(config)
        run.check_texts(corpus.sha256)
        fabric.load(run.checkpoint, state)
        progress = state["progress"]
    else:
        run.start("captions", config, corpus.describe())
    for name, reason in corpus.corrupt.items():
        fabric.print(f"{name} skipped: {reason}")
    deadline = time.monotonic() + 60 * minutes

    for epoch in range(progress["epoch"], config.epochs + config.reward_epochs):
        rewarded = epoch >= config.epochs
        started, first = time.monotonic(), progress["batch"]
        if epoch == config.epochs and first == 0:
            _start_reward_phase(model, average, optimiser, state["best"]["weights"], config.temperature)
        batches = (
            training_set.photograph_batches(config, epoch) if rewarded else training_set.caption_batches(config, epoch)
        )
        bar = tqdm(batches[first:], f"epoch {epoch + 1}", len(batches), initial=first, mininterval=1)
        for index, batch in enumerate(bar, first):
            step = progress["step"]
            torch.manual_seed(config.seed * 1_000_003 + step)
            rate = _rate(config, epoch, index / len(batches))
            optimiser.param_groups[0]["lr"] = rate
            # Through Fabric's wrapper, which synchronises the gradients where there are several processes.
            loss = wrapped(batch, rewarded=rewarded)
            optimiser.zero_grad()
            fabric.backward(loss.value)
            norm = fabric.clip_gradients(wrapped, optimiser, max_norm=config.clip)
            optimiser.step()
            _update_average(average, model, min(config.averaging, (1 + step) / (10 + step)))

            total = progress["total"] + loss.metric
            progress.update(epoch=epoch, batch=index + 1, step=step + 1, total=total)
            if step % 20 == 0:
                bar.set_postfix_str(f"{total / (index + 1):.3f}")
                fabric.log_dict({_metric_name(rewarded): loss.metric, "gradient_norm": norm, "rate": rate}, step)
            run.save_when_due(fabric, state)
            if time.monotonic() > deadline:
                run.save(fabric, state)
                return False

        captions = valid.captions(average, config, config.length_penalty)
        metrics = {
            "epoch": epoch + 1,
            _metric_name(rewarded): progress["total"] / len(batches),
            "valid_cider": valid.cider(captions),
            "valid_distinct": len(set(captions)),
            "seconds": time.monotonic() - started,
        }
        fabric.log_dict({"valid_cider": metrics["valid_cider"]}, progress["step"])
        fabric.print(f"epoch {epoch + 1}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k != "epoch"))
        run.record(metrics)
        if metrics["valid_cider"] > state["best"]["cider"]:
            state["best"] = {"epoch": epoch + 1, "cider": metrics["valid_cider"], "weights": _copy_weights(average)}
        progress.update(epoch=epoch + 1, batch=0, total=0.0)
        run.save(fabric, state)
    average.load_state_dict(state["best"]["weights"])
    results = {"epoch": state["best"]["epoch"], **valid.results(average, config)}
    fabric.print(json.dumps(results))
    run.finish(results)
    return True


def build(config: CaptionsConfig, corpus: CaptionCorpus) -> Captioner:
    """Return the initialised module of `config` for the corpus; raise SettingsError for an impossible combination."""
    try:
        return Captioner(
            vocabulary_size=len(corpus.vocabulary),
            feature_size=corpus.splits["train"].features.shape[-1],
            embedding_size=config.embedding_size,
            hidden_size=config.hidden_size,
            cell=config.cell,
            inject=config.inject,
            tied=config.tied,
            feature_dropout=config.feature_dropout,
            input_dropout=config.input_dropout,
            output_dropout=config.output_dropout,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


class StepLoss(NamedTuple):
    """The loss of one training step, and the metric that is logged."""

    value: Tensor  # ()
    metric: float  # nats a word, or the mean reward in CIDEr-D's 0 to 10


@dataclass(frozen=True)
class TrainingSet:
    """The training split as tensors."""

    features: Tensor  # (N, views, F)
    captions: Tensor  # (C, length + 2): <eos>, the words, <eos>, then IGNORED
    photographs: Tensor  # (C,): the index of each caption's photograph
    lengths: Order  # (C,)
    reward: CiderD  # of token ids with the <eos>, else captions without an end would score higher
    vocabulary: Vocabulary

    @classmethod
    def of(cls, corpus: CaptionCorpus, config: CaptionsConfig) -> "TrainingSet":
        """Tokenize the training split; captions longer than config.length are cut and have no end."""
        split, vocabulary = corpus.splits["train"], corpus.vocabulary
        ids = [[[*vocabulary.ids(words(caption)), vocabulary.end] for caption in group] for group in split.captions]
        owners = [number for number, group in enumerate(ids) for _ in group]
        cut = [caption[: config.length + 1] for group in ids for caption in group]
        captions = torch.full((len(cut), config.length + 2), IGNORED)
        captions[:, 0] = vocabulary.end
        for row, caption in zip(captions, cut, strict=True):
            row[1 : len(caption) + 1] = torch.tensor(caption)
        lengths = np.array([len(caption) for caption in cut])
        reward = CiderD(ids)
        return cls(torch.from_numpy(split.features), captions, torch.tensor(owners), lengths, reward, vocabulary)

    def caption_batches(self, config: CaptionsConfig, epoch: int) -> list[Order]:
        """Batches of caption indices, shuffled by epoch; the captions of a batch have similar lengths."""
        draw = np.random.default_rng([config.seed, epoch])
        order = draw.permutation(len(self.captions))
        pools = [order[start : start + POOL * config.batch_size] for start in _starts(order, POOL * config.batch_size)]
        ranked = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = [ranked[start : start + config.batch_size] for start in _starts(ranked, config.batch_size)]
        return [batches[index] for index in draw.permutation(len(batches))]

    def photograph_batches(self, config: CaptionsConfig, epoch: int) -> list[Order]:
        """Batches of photograph indices, shuffled by epoch."""
        order = np.random.default_rng([config.seed, epoch]).permutation(len(self.features))
        return [order[start : start + config.reward_batch] for start in _starts(order, config.reward_batch)]

    def sample_features(self, photographs: Tensor) -> Tensor:
        """Features (B, F) of photographs, each of a random view."""
        return self.features[photographs, torch.randint(self.features.shape[1], photographs.shape)]


class Objective(nn.Module):
    """The captioner and both phases' losses: one forward pass does all that needs a gradient."""

    def __init__(self, model: Captioner, training_set: TrainingSet, config: CaptionsConfig) -> None:
        super().__init__()
        self.model = model
        self.training_set = training_set
        self.config = config

    def forward(self, batch: Order, *, rewarded: bool) -> StepLoss:
        """Return the loss of a batch of captions or, `rewarded`, of photographs."""
        loss = _scst_loss if rewarded else _cross_entropy_loss
        return loss(self.model, self.training_set, batch, self.config)


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

    def captions(self, model: Captioner, config: CaptionsConfig, length_penalty: float) -> list[str]:
        """Caption each photograph by beam search; words are separated by spaces."""
        model.eval()
        found = beam_search(
            model, self.features, self.vocabulary, config.beam_width, config.length, length_penalty=length_penalty
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


class Caption(NamedTuple):
    """A caption found by beam search."""

    tokens: list[int]  # without the end
    log_probability: float  # the end's included, if there is one


@torch.inference_mode()
def beam_search(
    model: Captioner, features: Tensor, vocabulary: Vocabulary, width: int, length: int, *, length_penalty: float
) -> list[Caption]:
    """Return the best caption of each of the photographs (N, F), by a batched form of `app.runtime.beam_search`.

    The `width` best finished and unfinished captions are kept at each word, ranked by log-probability /
    n**length_penalty, where n counts the end; `<unk>` is never chosen, nor the end as the first word.
    """
    parts = torch.split(features, 256)
    found = [_beam_search(model, part, vocabulary, width, length, length_penalty) for part in parts]
    return list(chain.from_iterable(found))


def _beam_search(
    model: Captioner, features: Tensor, vocabulary: Vocabulary, width: int, length: int, length_penalty: float
) -> list[Caption]:
    count = len(features)
    tokens = torch.full((count, 1, 1), vocabulary.end)  # (N, W, words so far), started by <eos>
    scores, ranks = torch.zeros(count, 1), torch.zeros(count, 1)
    ended = torch.zeros(count, 1, dtype=torch.bool)
    state = model.begin(features)[:, None]  # (N, W, S)
    for words_now in range(1, length + 1):
        log_probs, after = model.step(tokens[..., -1].flatten(), state.flatten(0, 1))
        log_probs = _mask_forbidden(log_probs, vocabulary, first=words_now == 1).view(count, tokens.shape[1], -1)
        grown = scores[..., None] + log_probs.masked_fill(ended[..., None], -math.inf)  # (N, W, V)
        ranked = grown / words_now**length_penalty
        ranked[..., vocabulary.end] = torch.where(ended, ranks, ranked[..., vocabulary.end])
        grown[..., vocabulary.end] = torch.where(ended, scores, grown[..., vocabulary.end])
        ranks, chosen = ranked.flatten(1).topk(width)
        parents, words = chosen // log_probs.shape[-1], chosen % log_probs.shape[-1]
        scores = grown.flatten(1).gather(1, chosen)
        rows = torch.arange(count)[:, None]
        tokens = torch.cat([tokens[rows, parents], words[..., None]], -1)
        state = after.view(count, -1, after.shape[-1])[rows, parents]
        ended = words == vocabulary.end
        if ended.all():
            break
    found = (_before_end(row[0, 1:].tolist(), vocabulary.end) for row in tokens)
    return [Caption(caption, score) for caption, score in zip(found, scores[:, 0].tolist(), strict=True)]


def _mask_forbidden(log_probabilities: Tensor, vocabulary: Vocabulary, *, first: bool) -> Tensor:
    """Log-probabilities (B, V) in float32, with forbidden tokens at -inf."""
    barred = torch.zeros(len(vocabulary))
    barred[vocabulary.unknown] = -math.inf
    if first:
        barred[vocabulary.end] = -math.inf
    return log_probabilities.float() + barred


def _before_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _cross_entropy_loss(model: Captioner, training_set: TrainingSet, batch: Order, config: CaptionsConfig) -> StepLoss:
    """Cross-entropy of the captions, the mean over their words and ends."""
    model.train()
    chosen = torch.from_numpy(batch)
    captions = training_set.captions[chosen, : training_set.lengths[batch].max() + 1]
    losses = _token_losses(
        model, training_set.sample_features(training_set.photographs[chosen]), captions, config.label_smoothing
    )
    loss = losses.sum() / (captions[:, 1:] != IGNORED).sum()
    return StepLoss(loss, loss.item())


def _scst_loss(model: Captioner, training_set: TrainingSet, batch: Order, config: CaptionsConfig) -> StepLoss:
    """Self-critical loss: log-likelihoods weighted by each sample's advantage over the photograph's other samples.

    Samples are drawn and scored under the same dropout masks: the policy that learns is the one that sampled.
    """
    model.train()
    photographs = torch.from_numpy(batch)
    features = training_set.sample_features(photographs).repeat_interleave(config.samples, 0)
    samples, likelihoods = sample(model, features, training_set.vocabulary, config.length)
    owners = photographs.repeat_interleave(config.samples).tolist()
    sampled = [[token for token in row if token != IGNORED] for row in samples[:, 1:].tolist()]
    rewards = torch.tensor(
        [training_set.reward(owner, caption) for owner, caption in zip(owners, sampled, strict=True)]
    )
    rewards = rewards.view(-1, config.samples)  # (B, K)
    advantage = (rewards - rewards.mean(1, keepdim=True)) * config.samples / (config.samples - 1)
    loss = -(likelihoods * advantage.flatten()).sum() / sum(map(len, sampled))
    return StepLoss(loss, rewards.mean().item())


def _token_losses(model: Captioner, features: Tensor, captions: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropies (B, T) of captions (B, T + 1) started by `<eos>`; 0 where a target is IGNORED."""
    logits = model(features, captions[:, :-1].clamp(min=0)).flatten(0, 1)
    targets = captions[:, 1:]
    # In the logits' own precision, see training/LOG.md; sums are made in float32.
    losses = F.cross_entropy(
        logits, targets.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="none"
    )
    return losses.float().view_as(targets)


def sample(model: Captioner, features: Tensor, vocabulary: Vocabulary, length: int) -> tuple[Tensor, Tensor]:
    """Sample captions (B, length + 2), in the form of `TrainingSet`, for features (B, F).

    Also return their log-likelihoods (B,), with a gradient. `<unk>` is never drawn, nor the end as the first word.
    """
    captions = torch.full((len(features), length + 2), IGNORED)
    captions[:, 0] = vocabulary.end
    likelihoods = torch.zeros(len(features))
    growing, state = torch.arange(len(features)), model.begin(features)
    for position in range(length):
        log_probs, state = model.step(captions[growing, position], state)
        log_probs = _mask_forbidden(log_probs, vocabulary, first=position == 0).log_softmax(-1)
        drawn = (log_probs.detach() - torch.empty_like(log_probs).exponential_().log_()).argmax(-1)  # the Gumbel trick
        likelihoods = likelihoods.index_add(0, growing, log_probs.gather(1, drawn[:, None]).squeeze(1))
        captions[growing, position + 1] = drawn
        growing, state = growing[drawn != vocabulary.end], state[drawn != vocabulary.end]
        if not len(growing):
            break
    return captions, likelihoods


def _start_reward_phase(
    model: Captioner,
    average: Captioner,
    optimiser: torch.optim.Optimizer,
    weights: dict[str, Tensor],
    temperature: float,
) -> None:
    """Start the reward phase: load the best weights, sharpen them and reset the optimiser."""
    for each in (model, average):
        each.load_state_dict(weights)
        each.sharpen(temperature)
    optimiser.state.clear()


@torch.no_grad()
def _update_average(average: Captioner, model: Captioner, share: float) -> None:
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - share)


def _copy_weights(model: Captioner) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def _rate(config: CaptionsConfig, epoch: int, share: float) -> float:
    """Learning rate after `share` of an epoch: linear warm-up to the phase's peak, then linear decay to 0."""
    rewarded = epoch >= config.epochs
    peak = config.reward_rate if rewarded else config.learning_rate
    done = (epoch - config.epochs + share) / config.reward_epochs if rewarded else (epoch + share) / config.epochs
    return peak * min(done / WARM, (1 - done) / (1 - WARM))


def _metric_name(rewarded: bool) -> str:
    return "train_reward" if rewarded else "train_cost"


def _starts(order: Order, size: int) -> range:
    return range(0, len(order), size)
