"""The digit recipe: readers of handwriting on MNIST, from the chapter's to one that is robust to photographs.

    config = PRESETS["best"]
    train(config, corpus, Run(Path("runs/best")))

A batch holds plain, elastic, degraded, printed and composed digits, and images without a digit. All but plain and
elastic ones pass through the framing that the server applies to every image.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from app.errors import SettingsError
from app.images import framed, framed_array
from app.models.digits import ReNet, RowReader
from app.models.recurrent import Cell
from training.digits.augmentation import Pixels, degraded, elastic
from training.digits.data import DigitCorpus, Digits
from training.digits.drawing import pick
from training.digits.kinds import DIGIT_KINDS, crossed_out, garbled, slashed_zero, small_on_page, touching_digits
from training.digits.negatives import TRAINING_FONTS, print_of, training_negative
from training.ranges import BelowOne, Count, Counts, NotNegative, Positive, Probability, Range, Seed, require_ranges
from training.run import Run
from training.session import Session

DIGITS = 10
NO_DIGIT = DIGITS  # the class of images without a digit
LOGGED_EVERY = 10  # steps
MAX_DRAWS = 8  # of an image that the framing rejects
COMPOSED_KINDS = [kind for kind in DIGIT_KINDS.values() if kind not in (slashed_zero, small_on_page)]
ZERO_KINDS = [*COMPOSED_KINDS, *[slashed_zero] * (len(COMPOSED_KINDS) // 2)]  # a third of the zeros are slashed
ROBUSTNESS_IMAGES = 2_000  # validation images, and negatives, that measure each epoch's robustness
_ABOVE_0 = Range("above 0", lambda value: value is None or value > 0)


@dataclass(frozen=True)
class DigitsConfig:
    """Hyperparameters of a run. Defaults are the chapter's (CHAPTER.md: digit classifier).

    Raise SettingsError that names every field out of its range.
    """

    reader: Literal["rows", "renet"] = "rows"  # one sweep from top to bottom, or sweeps over the plane
    cell: Cell = "lstm"  # of the recurrent layers: see app.models.recurrent
    hidden_sizes: Counts = (256,)  # units a direction, of each layer
    patches: Counts = (1,)  # side of the patches of each renet layer's input
    dropout: BelowOne = 0.0  # before the linear layer of a renet

    samples: Count = 400_000  # images seen
    batch_size: Count = 128  # images a step
    p_elastic: Probability = 0.0  # share of digits with elastic and affine distortions
    p_degraded: BelowOne = 0.0  # share of digits with the defects of paper and cameras
    p_printed: BelowOne = 0.0  # share of digits printed in a font
    p_composed: BelowOne = 0.0  # share of digits in images of DIGIT_KINDS, and of negatives that are of DOUBTFUL_KINDS
    negatives: BelowOne = 0.0  # share of images without a digit; above 0, the reader has a class for them
    label_smoothing: BelowOne = 0.0  # probability taken from the label and spread over all classes

    optimiser: Literal["adam", "adamw"] = "adam"  # adamw: betas 0.9 and 0.98
    learning_rate: Positive = 0.01  # one-cycle: its peak
    schedule: Literal["constant", "one-cycle"] = "constant"  # of the learning rate
    weight_decay: NotNegative = 0.0  # decoupled, for adamw
    clip: Annotated[float | None, _ABOVE_0] = None  # global gradient norm
    average: BelowOne = 0.0  # decay a step of the average of weights that is validated and published; 0: none
    precision: Literal["32-true", "bf16-mixed"] = "32-true"  # of the products
    seed: Seed = 1  # of weights, order, dropout and augmentation

    def __post_init__(self) -> None:
        further = []
        if len(self.patches) != len(self.hidden_sizes):
            further.append(f"patches: expected one a layer of hidden_sizes {self.hidden_sizes}, found {self.patches}")
        require_ranges(self, *further)

    @property
    def outputs(self) -> int:
        """Number of classes: the digits, and NO_DIGIT if trained with negatives."""
        return NO_DIGIT + 1 if self.negatives else NO_DIGIT


BEST = DigitsConfig(
    reader="renet",
    cell="gru",
    hidden_sizes=(48, 96),
    patches=(2, 2),
    dropout=0.3,
    samples=16 * 55_000,
    p_elastic=0.7,
    p_degraded=0.3,
    p_printed=0.04,
    p_composed=0.15,
    negatives=0.2,
    label_smoothing=0.02,
    optimiser="adamw",
    learning_rate=4e-3,
    schedule="one-cycle",
    weight_decay=0.02,
    clip=1.0,
    average=0.998,
    precision="bf16-mixed",
)
PRESETS = {
    "chapter": DigitsConfig(),
    "best": BEST,
    "fine-tuned": replace(BEST, samples=2_400 * 128, p_composed=0.25, learning_rate=1.5e-3),  # from weights of `best`
}


def train(
    config: DigitsConfig,
    corpus: DigitCorpus,
    run: Run,
    *,
    photographs: Sequence[bytes] = (),
    weights: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    minutes: float = math.inf,
) -> bool:
    """Train into `run`, with `resume` from its checkpoint if there is one; return True after the last sample.

    Random numbers of a step depend on the seed and the step alone, so a resumed run ends with the weights of an
    uninterrupted one. `photographs` (encoded images) are further negatives, where the configuration has negatives.
    `weights`: a module's state to start from; left out, it is random. `minutes` limits the duration of this call.
    """
    session = Session(run, config.precision, config.seed, minutes, "auto")
    fabric = session.fabric
    model = build(config)
    if weights is not None:
        model.load_state_dict(weights)
    optimiser = _optimiser(model, config)
    steps = math.ceil(config.samples / config.batch_size)
    schedule = _schedule(optimiser, config, steps)
    wrapped, optimiser = fabric.setup(model, optimiser)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))  # type: ignore[no-untyped-call]
    state: dict[str, Any] = {
        "model": model,
        "averaged": averaged,
        "optimiser": optimiser,
        "schedule": schedule,
        "progress": {"step": 0, "cost": 0.0, "right": 0.0},
    }
    source = corpus.describe() | {"photographs": len(photographs), "fine_tuned": weights is not None}
    progress = session.open("digits", config, source, state, resume=resume)
    started, first = time.monotonic(), progress["step"]
    epoch_steps = max(len(corpus.train) // config.batch_size, 1)
    validation = validation_sets(corpus.valid, config)

    for step in session.bar(range(first, steps), "steps", first, steps):
        draw, chosen = session.seed_step(step), _batch_indices(len(corpus.train), config, step)
        images, labels = _batch(corpus.train, config, chosen[session.share(len(chosen))], draw, photographs)
        model.train()
        # Through Fabric's wrapper, which synchronises the gradients where there are several processes.
        logits = wrapped(fabric.to_device(images))  # (B, 28, 28) -> (B, outputs), float32
        targets = fabric.to_device(labels)
        cost = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
        optimiser.zero_grad()
        fabric.backward(cost)
        if config.clip is not None:
            fabric.clip_gradients(wrapped, optimiser, max_norm=config.clip)
        optimiser.step()
        rate = optimiser.param_groups[0]["lr"]
        schedule.step()
        averaged.update_parameters(model)

        mean_cost, right = session.mean(cost), session.mean((logits.argmax(1) == targets).sum()) * session.ranks
        progress.update(step=step + 1, cost=progress["cost"] + mean_cost, right=progress["right"] + right)
        if step % LOGGED_EVERY == 0:
            fabric.log_dict({"cost/train": mean_cost, "accuracy/train": right / len(chosen), "rate": rate}, step)
        if (step + 1) % epoch_steps == 0 or step + 1 == steps:
            seen = (step % epoch_steps) + 1
            metrics = {
                "epoch": math.ceil((step + 1) / epoch_steps),
                "train_cost": progress["cost"] / seen,
                "train_accuracy": progress["right"] / seen / config.batch_size,
                **_accuracies(averaged.module, validation),
                "learning_rate": rate,
                "images_per_second": (step + 1 - first) * config.batch_size / (time.monotonic() - started),
            }
            session.record(metrics, step)
            progress.update(cost=0.0, right=0.0)
            session.save(state)
        if session.stops(state):
            return False
    session.finish(_accuracies(averaged.module, validation))
    return True


def build(config: DigitsConfig) -> RowReader | ReNet:
    """Return the initialised module of `config`; raise SettingsError for an impossible combination."""
    if config.reader == "rows":
        return RowReader(hidden_size=config.hidden_sizes[0], cell=config.cell, outputs=config.outputs)
    layers = list(zip(config.patches, config.hidden_sizes, strict=True))
    try:
        return ReNet(layers, cell=config.cell, outputs=config.outputs, dropout=config.dropout)
    except ValueError as error:
        raise SettingsError(str(error)) from error


@torch.inference_mode()
def accuracy(model: nn.Module, digits: Digits, batch_size: int = 500) -> float:
    """Top-1 accuracy of the model on `digits`."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for start in range(0, len(digits), batch_size):
        part = slice(start, start + batch_size)
        answers = model(as_input(digits.images[part]).to(device)).argmax(1).cpu()
        right += int((answers == digits.labels[part]).sum())
    return right / len(digits)


def as_input(images: Tensor) -> Tensor:
    """uint8 pixels -> float inputs in 0..1."""
    return images.float() / 255


def framed_batch(draws: Iterable[Callable[[], Pixels]]) -> Tensor:
    """Images framed as in the server: (B, 28, 28) uint8.

    An image that the framing rejects is drawn again, up to MAX_DRAWS times in all.
    """
    return torch.from_numpy(np.stack([_framed(draw) for draw in draws]))


def _framed(draw: Callable[[], Pixels]) -> Pixels:
    for _ in range(MAX_DRAWS):
        pixels = draw()
        found = framed_array(pixels) if pixels.ndim == 2 else framed(Image.fromarray(pixels))
        if found.reason is None:
            break
    return found.pixels


def _batch(
    digits: Digits, config: DigitsConfig, chosen: Tensor, rng: np.random.Generator, photographs: Sequence[bytes]
) -> tuple[Tensor, Tensor]:
    """Images (B, 28, 28) in 0..1 and labels (B,) of a step from the digits `chosen` (B,)."""
    images, labels = as_input(digits.images[chosen]), digits.labels[chosen]
    count = len(chosen)
    shares = (config.p_elastic, config.p_degraded, config.p_printed, config.p_composed, config.negatives)
    distorted, defective, typeset, composed, negative = (round(share * count) for share in shares)
    if distorted:
        images[count - distorted :] = elastic(images[count - distorted :])
    if defective:
        start = count - distorted - defective // 3  # a third of the degraded digits are not distorted
        start = max(min(start, count - negative - defective), 0)
        part = slice(start, start + defective)
        pixels = (images[part] * 255).byte().numpy()
        images[part] = as_input(framed_batch(partial(degraded, image, rng) for image in pixels))
    if typeset:
        printed = rng.integers(DIGITS, size=typeset).tolist()
        prints = (partial(print_of, str(digit), TRAINING_FONTS, rng, bold=0.1) for digit in printed)
        images[:typeset], labels[:typeset] = as_input(framed_batch(prints)), torch.tensor(printed)
    if composed:
        part = slice(max(count - negative - composed, 0), count - negative)
        pixels = (images[part] * 255).byte().numpy()
        images[part] = as_input(framed_batch(_composed(pixels, labels[part].tolist(), rng)))
    if negative:
        draws = _doubtful(digits, chosen[: round(config.p_composed * negative)], rng)
        draws += [partial(training_negative, rng, photographs)] * (negative - len(draws))
        images[count - negative :] = as_input(framed_batch(draws))
        labels[count - negative :] = NO_DIGIT
    return images, labels


def _composed(images: Pixels, labels: list[int], rng: np.random.Generator) -> list[Callable[[], Pixels]]:
    """Return draws of digits (N, 28, 28) in images of random kinds that the framing does not make plain digits of."""
    kinds = [pick(COMPOSED_KINDS if label else ZERO_KINDS, rng) for label in labels]
    parts = zip(kinds, images, labels, strict=True)
    return [partial(compose, image, label, rng) for compose, image, label in parts]


def _doubtful(digits: Digits, chosen: Tensor, rng: np.random.Generator) -> list[Callable[[], Pixels]]:
    """Return draws of crossed out, garbled and touching digits; the framing rejects those apart."""
    images = digits.images[chosen].numpy()
    kinds = [pick((crossed_out, garbled, touching_digits), rng) for _ in chosen]
    pairs = zip(kinds, images, images[::-1], strict=True)
    return [partial(compose, digit, other, rng) for compose, digit, other in pairs]


def _batch_indices(count: int, config: DigitsConfig, step: int) -> Tensor:
    """Indices of a step's digits: each epoch every one once, shuffled anew, but for the last, incomplete batch."""
    batch = min(config.batch_size, count)
    epoch, index = divmod(step, count // batch)
    order = torch.from_numpy(np.random.default_rng([config.seed, epoch, count]).permutation(count))
    return order[index * batch : (index + 1) * batch]


def validation_sets(valid: Digits, config: DigitsConfig) -> dict[str, Digits]:
    """Validation sets by name: plain digits, and, where trained on, degraded and composed digits and negatives."""
    parts = {"valid": valid}
    rng = np.random.default_rng(0)
    some = Digits(valid.images[:ROBUSTNESS_IMAGES], valid.labels[:ROBUSTNESS_IMAGES])
    if config.p_degraded:
        images = framed_batch(partial(degraded, image, rng) for image in some.images.numpy())
        parts["valid_degraded"] = Digits(images, some.labels)
    if config.p_composed:
        images = framed_batch(_composed(some.images.numpy(), some.labels.tolist(), rng))
        parts["valid_composed"] = Digits(images, some.labels)
    if config.negatives:
        images = framed_batch([partial(training_negative, rng)] * len(some))
        parts["valid_no_digit"] = Digits(images, torch.full((len(some),), NO_DIGIT))
    return parts


def _accuracies(model: nn.Module, parts: dict[str, Digits]) -> dict[str, float]:
    return {f"{name}_accuracy": accuracy(model, digits) for name, digits in parts.items()}


def _optimiser(model: nn.Module, config: DigitsConfig) -> torch.optim.Optimizer:
    if config.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), config.learning_rate)
    return torch.optim.AdamW(
        model.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )


def _schedule(
    optimiser: torch.optim.Optimizer, config: DigitsConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.learning_rate, steps, pct_start=0.2, base_momentum=0.85, max_momentum=0.9
        )
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
