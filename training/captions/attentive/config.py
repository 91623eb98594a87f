"""Configuration and presets of the attentive captions recipe."""

from dataclasses import dataclass
from typing import Annotated, Literal

from app.models.recurrent import Cell
from training.ranges import BelowOne, Count, CountFrom0, NotNegative, Positive, Seed, at_least, require_ranges


@dataclass(frozen=True)
class AttentiveConfig:
    """Hyperparameters of a run. Raise SettingsError that names every field out of its range."""

    views: Count = 4  # of each training photograph: whole, mirrored, random crops
    min_count: Count = 10  # occurrences in captions and sentences that a word of the vocabulary needs
    cell: Cell = "gru"  # of the decoder: see app.models.recurrent
    embedding_size: Count = 256  # size of a word's embedding and of a slot
    hidden_size: Count = 512  # units of the recurrent layer
    attention_size: Count = 256  # of keys and queries

    feature_dropout: BelowOne = 0.1  # of pooled vector and cells
    input_dropout: BelowOne = 0.3  # of the embedded words
    output_dropout: BelowOne = 0.4  # before the output layer
    untagged: BelowOne = 0.15  # share of photographs that are shown without their tags
    averaging: BelowOne = 0.998  # decay a step of the average of the weights

    steps: Count = 12_000  # of cross-entropy, each on photographs' captions and on sentences
    batch_size: Count = 128  # captions
    text_batch: CountFrom0 = 128  # sentences without photographs; 0: none
    learning_rate: Positive = 2e-3  # its peak
    weight_decay: NotNegative = 0.0  # decoupled (AdamW)
    clip: Positive = 5.0  # global gradient norm

    reward_steps: CountFrom0 = 3_000  # of self-critical training
    reward_batch: Count = 32  # photographs
    samples: Annotated[int, at_least(2)] = 5  # captions sampled for each
    temperature: Positive = 0.5  # the logits are divided by it when this phase starts: below 1, a sharper distribution
    tag_reward: NotNegative = 0.2  # for a caption that names all tags of high score, beside CIDEr-D's 0 to 10
    reward_rate: Positive = 2e-4  # the learning rate's peak

    length: Count = 20  # words of a caption, at most
    beam_width: Count = 3  # in validation
    length_penalty: NotNegative = 0.9  # in validation during training: see app.runtime.beam_search
    every: Count = 500  # steps between validations
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"  # of the products
    seed: Seed = 1  # of weights, order and all draws

    def __post_init__(self) -> None:
        require_ranges(self)


PRESETS = {"attentive": AttentiveConfig()}
