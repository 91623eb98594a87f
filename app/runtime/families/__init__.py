"""Model families: one predictor each for language models, readers of digits and numbers, and captioners.

To add a family, write a module with its predictor and add a line to `FAMILIES`, or pass a mapping of your own to
`create_app`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.runtime.families import captions, digits, language_model, numbers
from app.runtime.predictor import BundlePredictor


@dataclass(frozen=True)
class Headline:
    """A metric by which the models of a family are compared."""

    metric: str  # its name among the manifest's metrics
    name: str
    form: str  # format of its value
    details: str

    def text(self, metrics: Mapping[str, float]) -> str:
        """Return the formatted value."""
        return self.form.format(metrics[self.metric])


@dataclass(frozen=True)
class Family:
    """A kind of model: its predictor, the metrics by which its models are compared, and the usage of an answer."""

    name: str  # as in manifests
    predictor: type[BundlePredictor[Any, Any, Any]]
    headlines: Sequence[Headline]  # the first that a manifest has is shown
    usage: Callable[[Any], dict[str, int]]  # answer -> `tokens`, `cached` tokens and `images`, where they apply

    def headline(self, metrics: Mapping[str, float]) -> Headline | None:
        """Return the headline of a model with these metrics, None if it has none of the family's."""
        return next((headline for headline in self.headlines if headline.metric in metrics), None)


def _one_image(_: object) -> dict[str, int]:
    """Return the usage of an answer about one image."""
    return {"images": 1}


FAMILIES: Final[Mapping[str, Family]] = {
    "language_model": Family(
        "language_model",
        language_model.LanguageModelPredictor,
        [
            Headline("test_perplexity", "perplexity", "{:.2f}", "on the test text; lower is better"),
            Headline("valid_bits_per_byte", "bits a byte", "{:.3f}", "on the validation texts; lower is better"),
        ],
        language_model.usage,
    ),
    "digits": Family(
        "digits",
        digits.DigitsPredictor,
        [Headline("test_accuracy", "accuracy", "{:.2%}", "on the test digits")],
        _one_image,
    ),
    "numbers": Family(
        "numbers",
        numbers.NumbersPredictor,
        [Headline("test_digit_accuracy", "accuracy", "{:.2%}", "on the digits of the test numbers")],
        _one_image,
    ),
    "captions": Family(
        "captions",
        captions.CaptionsPredictor,
        [Headline("test_cider", "CIDEr", "{:.1f}", "on the test photographs; higher is better")],
        _one_image,
    ),
}
