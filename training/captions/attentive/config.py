"""Configuration and presets of the attentive captions recipe."""

import math
from dataclasses import dataclass
from typing import Literal

from app.models.recurrent import Cell
from training.ranges import Range, require_ranges


@dataclass(frozen=True)
class AttentiveConfig:
    """Hyperparameters of a run. Raise SettingsError that names every field out of its range."""

    views: int = 4  # of each training photograph: whole, mirrored, random crops
    min_count: int = 10  # occurrences in captions and sentences that a word of the vocabulary needs
    cell: Cell = "gru"  # of the decoder: see app.models.recurrent
    embedding_size: int = 256  # size of a word's embedding and of a slot
    hidden_size: int = 512  # units of the recurrent layer
    attention_size: int = 256  # of keys and queries

    feature_dropout: float = 0.1  # of pooled vector and cells
    input_dropout: float = 0.3  # of the embedded words
    output_dropout: float = 0.4  # before the output layer
    untagged: float = 0.15  # share of photographs that are shown without their tags
    averaging: float = 0.998  # decay a step of the average of the weights

    steps: int = 12_000  # of cross-entropy, each on photographs' captions and on sentences
    batch_size: int = 128  # captions
    text_batch: int = 128  # sentences without photographs; 0: none
    learning_rate: float = 2e-3  # its peak
    weight_decay: float = 0.0  # decoupled (AdamW)
    clip: float = 5.0  # global gradient norm

    reward_steps: int = 3_000  # of self-critical training
    reward_batch: int = 32  # photographs
    samples: int = 5  # captions sampled for each
    temperature: float = 0.5  # the logits are divided by it when this phase starts: below 1, a sharper distribution
    tag_reward: float = 0.2  # for a caption that names all tags of high score, beside CIDEr-D's 0 to 10
    reward_rate: float = 2e-4  # the learning rate's peak

    length: int = 20  # words of a caption, at most
    beam_width: int = 3  # in validation
    length_penalty: float = 0.9  # in validation during training: see app.runtime.beam_search
    every: int = 500  # steps between validations
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
            "attention_size",
            "steps",
            "batch_size",
            "reward_batch",
            "length",
            "beam_width",
            "every",
        ),
    ),
    ("2 or more", lambda value: value >= 2, ("samples",)),
    (
        "0 or more and below 1",
        lambda value: 0 <= value < 1,
        ("feature_dropout", "input_dropout", "output_dropout", "untagged", "averaging"),
    ),
    ("a number above 0", lambda value: 0 < value < math.inf, ("learning_rate", "clip", "temperature", "reward_rate")),
    (
        "a number from 0",
        lambda value: 0 <= value < math.inf,
        ("text_batch", "weight_decay", "reward_steps", "tag_reward", "length_penalty"),
    ),
    ("0 to 2^40", lambda value: 0 <= value <= 2**40, ("seed",)),  # times a million it still seeds torch
)

PRESETS = {"attentive": AttentiveConfig()}
