import pytest

from tests.bench.serving.checks import differs


def suggestions(**probabilities: float) -> dict[str, object]:
    return {"suggestions": [{"text": text, "probability": value} for text, value in probabilities.items()]}


@pytest.mark.parametrize(
    "found",
    [
        suggestions(a=0.5, b=0.3, c=0.1),
        suggestions(a=0.5004, b=0.2996, c=0.1),
        suggestions(a=0.5, b=0.3, d=0.1002),  # as likely as the last expected one
    ],
)
def test_answers_within_the_tolerance_are_equal(found: dict[str, object]) -> None:
    assert differs("next-word", found, suggestions(a=0.5, b=0.3, c=0.1), 1e-3) is None


@pytest.mark.parametrize(
    "found",
    [
        suggestions(a=0.502, b=0.3, c=0.1),
        suggestions(a=0.5, d=0.3, c=0.1),
        suggestions(a=0.5, b=0.3),
        {"suggestions": [], "more": 1},
    ],
)
def test_answers_beyond_the_tolerance_differ(found: dict[str, object]) -> None:
    assert differs("next-word", found, suggestions(a=0.5, b=0.3, c=0.1), 1e-3)


def test_perplexities_are_compared_by_tokens_and_value() -> None:
    expected = {"corpus": {"tokens": 10, "perplexity": 100.0}}
    assert differs("perplexity", {"corpus": {"tokens": 10, "perplexity": 100.2}}, expected, 1e-3) is None
    assert differs("perplexity", {"corpus": {"tokens": 10, "perplexity": 101.0}}, expected, 1e-3)
    assert differs("perplexity", {"corpus": {"tokens": 11, "perplexity": 100.0}}, expected, 1e-3)


def test_digits_are_compared_by_label_and_probabilities() -> None:
    def answer(digit: int, *probabilities: float) -> dict[str, object]:
        return {"results": [{"digit": digit, "probabilities": probabilities}]}

    assert differs("digits", answer(1, 0.1, 0.9), answer(1, 0.11, 0.89), 2e-2) is None
    assert differs("digits", answer(1, 0.1, 0.9), answer(1, 0.2, 0.8), 2e-2)
    assert differs("digits", answer(0, 0.5, 0.5), answer(1, 0.5, 0.5), 2e-2)


def test_an_equally_likely_caption_is_accepted() -> None:
    def answer(caption: str, log_probability: float) -> dict[str, object]:
        return {"results": [{"caption": caption, "log_probability": log_probability}]}

    assert differs("captions", answer("a dog", -5.0), answer("a dog", -5.05), 0) is None
    assert differs("captions", answer("a cat", -5.3), answer("a dog", -5.0), 0) is None
    assert differs("captions", answer("a dog", -5.3), answer("a dog", -5.0), 0)
    assert differs("captions", answer("a cat", -6.0), answer("a dog", -5.0), 0)
