"""Tests of the typing evaluation's means, intervals, table and plot."""

from pathlib import Path

import numpy as np
import pytest

from training.language_model.typing_metrics import Counts
from training.language_model.typing_report import NGRAMS, Interval, TypingReport, ngrams, plot, table


def report(**sources: float) -> TypingReport:
    """Return a report of top-1 accuracies by source, the same in each of three documents."""
    return TypingReport(
        {
            name: [Counts(words=10, top1=round(10 * share), characters=50, saved=5)] * 3
            for name, share in sources.items()
        }
    )


def test_a_register_is_the_mean_of_its_sources_and_tasks_are_left_out_of_the_macro() -> None:
    found = report(bbc=0.2, abc=0.4, aeslc=0.0, sgd=1.0).by_register("top-1")
    assert {name: round(interval.value, 6) for name, interval in found.items()} == {
        "news": 30,
        "e-mail": 0,
        "assistant tasks": 100,
        "macro": 15,
    }
    assert found["news"] == pytest.approx(Interval(30, 30, 30))  # equal documents leave nothing to chance


def test_the_interval_contains_the_value_and_shrinks_with_documents() -> None:
    draw = np.random.default_rng(1)
    documents = [Counts(words=10, top1=int(draw.integers(0, 6)), characters=1) for _ in range(400)]
    few, all_ = (TypingReport({"bbc": some}).by_register("top-1")["news"] for some in (documents[:20], documents))
    assert all_.low < all_.value < all_.high
    assert all_.high - all_.low < few.high - few.low


def test_word_perplexity_is_of_all_bits_and_its_mean_is_over_sources() -> None:
    sources = {
        "bbc": [Counts(words=1, bits=6, bytes=4, spaced_words=3)],
        "abc": [Counts(bits=4, bytes=8, spaced_words=1)],
    }
    found = TypingReport(sources)
    assert found.by_register("word perplexity")["news"].value == (2**2 + 2**4) / 2
    assert found.by_register("bits a byte")["macro"].value == 1


def test_a_metric_that_was_not_measured_is_left_out() -> None:
    found = report(bbc=0.2)
    assert found.by_register("bits a byte") == {}
    assert "bits a byte" not in found.macro()
    assert "bits a byte" not in table(found)


def test_the_table_shows_each_register_beside_the_n_gram_models() -> None:
    header, _, *rows = table(report(bbc=0.2)).splitlines()
    assert header.startswith("| register | top-1 | top-3 |")
    assert rows[0].startswith("| news | 20.0 (20.0 to 20.0); 18.7 |")
    assert rows[1].startswith("| **macro** | 20.0 (20.0 to 20.0); 18.7 |")


def test_n_gram_models_have_a_mean_over_the_same_registers() -> None:
    every = ngrams("bits a byte", NGRAMS)
    assert every["macro"] == pytest.approx(1.765, abs=5e-4)
    assert ngrams("top-1", {"chat", "SMS", "assistant tasks", "letters"})["macro"] == pytest.approx((20.8 + 13.1) / 2)
    assert ngrams("top-1, any case", NGRAMS) == ngrams("top-1", {"letters"}) == {}


def test_models_are_plotted_side_by_side(tmp_path: Path) -> None:
    plot({"everyday": report(bbc=0.2, sms=0.1), "ptb": report(bbc=0.1, sms=0.1)}, tmp_path / "typing.png", "typing")
    assert (tmp_path / "typing.png").read_bytes().startswith(b"\x89PNG")
