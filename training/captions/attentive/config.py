"""Configuration and preset of the attentive captions recipe."""

from dataclasses import dataclass

from training.captions.config import CaptionerConfig
from training.ranges import BelowOne, Count, CountFrom0, NotNegative


@dataclass(frozen=True)
class AttentiveConfig(CaptionerConfig):
    """Hyperparameters of a run."""

    attention_size: Count = 256  # of keys and queries
    untagged: BelowOne = 0.15  # share of photographs that are shown without their tags
    steps: Count = 12_000  # of cross-entropy, each on photographs' captions and on sentences
    text_batch: CountFrom0 = 128  # sentences without photographs; 0: none
    reward_steps: CountFrom0 = 3_000  # of self-critical training
    tag_reward: NotNegative = 0.2  # for a caption that names all tags of high score, beside CIDEr-D's 0 to 10
    every: Count = 500  # steps between validations


PRESETS = {
    "attentive": AttentiveConfig(
        views=4,
        min_count=10,
        cell="gru",
        feature_dropout=0.1,
        output_dropout=0.4,
        averaging=0.998,
        reward_batch=32,
        temperature=0.5,
        reward_rate=2e-4,
        length_penalty=0.9,
    )
}
