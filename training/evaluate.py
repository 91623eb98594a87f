"""Scoring of texts with a published bundle, through the predictor of the server."""

from collections.abc import Sequence
from pathlib import Path

from app.errors import CorpusError, InvalidField
from app.runtime.families.language_model import Example, LanguageModelPredictor, Score
from app.runtime.scheduler import answer_all
from app.runtime.scores import TextScore
from training.corpora.files import open_text


def score_files(predictor: LanguageModelPredictor, paths: Sequence[Path]) -> list[TextScore]:
    """Return the score of each file's whole text as one document; the files are scored in one batch.

    Raise CorpusError for a file that is missing, without words or not UTF-8.
    """
    return answer_all(predictor, [_prepared(predictor, path) for path in paths])


def _prepared(predictor: LanguageModelPredictor, path: Path) -> Example:
    with open_text(path) as text:
        payload = Score(text.read())
    try:
        return predictor.prepare(payload)
    except InvalidField as error:
        raise CorpusError(f"{path}: {error.message}") from error
