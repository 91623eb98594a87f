"""Configurations of the captioners' recipes, and presets of the first one."""

from dataclasses import dataclass
from typing import Annotated, Literal

from app.models.captioner import Inject
from app.models.recurrent import Cell
from training.ranges import BelowOne, Count, CountFrom0, NotNegative, Positive, Seed, at_least, require_ranges


@dataclass(frozen=True)
class CaptionerConfig:
    """Hyperparameters that runs of all captioners have.

    Raise SettingsError that names every field out of its range.
    """

    views: Count = 8  # of each training photograph: whole, mirrored, random crops
    min_count: Count = 5  # occurrences in the training texts that a word of the vocabulary needs
    cell: Cell = "lstm"  # of the decoder: see app.models.recurrent
    embedding_size: Count = 256  # size of a word's embedding
    hidden_size: Count = 512  # units of the recurrent layer

    feature_dropout: BelowOne = 0.0  # of the photograph's features
    input_dropout: BelowOne = 0.3  # of the embedded words
    output_dropout: BelowOne = 0.5  # before the output layer
    averaging: BelowOne = 0.0  # decay a step of the average of the weights; 0: no average

    batch_size: Count = 128  # captions
    learning_rate: Positive = 2e-3  # its peak
    weight_decay: NotNegative = 0.0  # decoupled (AdamW)
    clip: Positive = 5.0  # global gradient norm

    reward_batch: Count = 50  # photographs
    samples: Annotated[int, at_least(2)] = 5  # captions sampled for each
    temperature: Positive = 1.0  # the logits are divided by it when this phase starts: below 1, a sharper distribution
    reward_rate: Positive = 1e-4  # the learning rate's peak

    length: Count = 20  # words of a caption, at most
    beam_width: Count = 3  # in validation
    length_penalty: NotNegative = 0.7  # in validation during training: see app.runtime.beam_search
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"  # of the products
    seed: Seed = 1  # of weights, order and all draws

    def __post_init__(self) -> None:
        require_ranges(self)


@dataclass(frozen=True)
class CaptionsConfig(CaptionerConfig):
    """Hyperparameters of a run. Defaults are the chapter's formula and plain maximum likelihood."""

    backbone: str = "mobilenet_v2"  # torchvision's name of the CNN
    inject: Inject = "chapter"  # how the photograph enters: see app.models.captioner
    tied: bool = False  # the output layer is the embedding
    label_smoothing: BelowOne = 0.0  # share of the probability that is spread over all words
    epochs: Count = 8  # passes over the captions
    reward_epochs: CountFrom0 = 0  # passes over the photographs, with CIDEr-D as reward


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
