"""Scores a published bundle through the same predictor that the server uses."""

from collections.abc import Sequence
from pathlib import Path

from app.runtime.batching import answer_all
from app.runtime.language_model import LanguageModelPredictor, Score, TextScore
from training.data import open_text


def score_files(predictor: LanguageModelPredictor, paths: Sequence[Path]) -> list[TextScore]:
    """The score of each file's whole text as one document; the files are read side by side."""
    return answer_all(predictor, [predictor.prepare(Score(_text(path))) for path in paths])


def _text(path: Path) -> str:
    with open_text(path) as text:
        return text.read()
