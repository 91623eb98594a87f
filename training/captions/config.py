"""Configuration and presets of the captions recipe."""

import math
from dataclasses import dataclass
from typing import Literal

from app.models.captioner import Inject
from app.models.recurrent import Cell
from training.ranges import Range, require_ranges


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
