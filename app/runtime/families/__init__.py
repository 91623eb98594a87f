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
    """A kind of model: its predictor, the metric by which its models are compared, and the usage of an answer."""

    name: str  # as in manifests
    predictor: type[BundlePredictor[Any, Any, Any]]
    headline_metric: str  # among the manifest's metrics
    usage: Callable[[Any], dict[str, int]]  # answer -> `tokens`, `cached` tokens and `images`, where they apply


FAMILIES: Final[Mapping[str, Family]] = {
    "language_model": Family(
        "language_model", language_model.LanguageModelPredictor, "test_perplexity", language_model.usage
    ),
    "digits": Family("digits", digits.DigitsPredictor, "test_accuracy", digits.usage),
    "numbers": Family("numbers", numbers.NumbersPredictor, "test_accuracy", numbers.usage),
    "captions": Family("captions", captions.CaptionsPredictor, "test_cider", captions.usage),
}
