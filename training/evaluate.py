"""Scoring of texts with a published bundle, through the predictor of the server."""

from collections.abc import Sequence
from pathlib import Path

from app.errors import CorpusError
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.predictor import answer_all
from app.runtime.scores import TextScore
from app.runtime.scoring import Score
from training.corpora.files import open_text


def score_files(predictor: LanguageModelPredictor, paths: Sequence[Path]) -> list[TextScore]:
    """Return the score of each file's whole text as one document; the files are scored in one batch.

    Raise CorpusError for a file that is missing, without words or not UTF-8.
    """
    examples = []
    for path in paths:
        with open_text(path) as text:
            examples.append(predictor.prepare(Score(text.read())))
    scores: list[TextScore] = answer_all(predictor, examples)
    for path, score in zip(paths, scores, strict=True):
        if not score.tokens:
            raise CorpusError(f"{path}: expected some words, found none")
    return scores
