"""The table of model families."""

from app.runtime.families import FAMILIES


def test_the_headline_is_the_first_metric_that_a_model_has() -> None:
    family = FAMILIES["language_model"]
    metrics = {"valid_bits_per_byte": 1.5335, "test_perplexity": 80.5}
    headline = family.headline(metrics)
    assert headline is not None
    assert (headline.name, headline.text(metrics)) == ("perplexity", "80.50")
    assert family.headline({"steps": 3.0}) is None
