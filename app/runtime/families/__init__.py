"""Model families: one predictor each for language models, readers of digits and numbers, and captioners.

To add a family, write a module with its predictor and add a line to `FAMILIES`, or pass a mapping of your own to
`create_app`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.runtime.families import captions, digits, language_model, numbers
from app.runtime.predictor import BundlePredictor


@dataclass(frozen=True)
class Family:
    """A kind of model: its predictor, the metrics by which its models are compared, and the usage of an answer."""

    name: str  # as in manifests
    predictor: type[BundlePredictor[Any, Any, Any]]
    headline_metrics: Mapping[str, str]  # formats of metrics by name: the first of them in a manifest is shown
    usage: Callable[[Any], dict[str, int]]  # answer -> `tokens`, `cached` tokens and `images`, where they apply


FAMILIES: Final[Mapping[str, Family]] = {
    "language_model": Family(
        "language_model",
        language_model.LanguageModelPredictor,
        {"test_perplexity": "perplexity {:.2f}", "valid_bits_per_byte": "{:.3f} bits a byte"},
        language_model.usage,
    ),
    "digits": Family("digits", digits.DigitsPredictor, {"test_accuracy": "accuracy {:.2%}"}, digits.usage),
    "numbers": Family("numbers", numbers.NumbersPredictor, {"test_accuracy": "accuracy {:.2%}"}, numbers.usage),
    "captions": Family("captions", captions.CaptionsPredictor, {"test_cider": "CIDEr {:.1f}"}, captions.usage),
}
