"""Costs of request bodies in units of rate limits, beyond the base cost of one unit a request.

A unit is about 2.5 ms of a core. Invalid fields add nothing to the base cost.
"""

from typing import Any, Final

from starlette.datastructures import QueryParams

from app.runtime.families.captions import Describe
from app.runtime.families.language_model import Suggest
from app.runtime.fields import Limits, limits
from app.runtime.scoring import Score

CHARACTERS: Final = 100  # of text per unit
IMAGE: Final = 4  # units per image
BEAM: Final = 10  # minimum beam width of the search for runs of words, as in the predictor
STEPS: Final = 10  # steps of one beam row (a word each) per unit
TOKENS: Final = 40  # alternatives that cost as much as the score of their position
ROWS: Final = 6  # beam rows of a caption search per unit
SUGGEST: Final = limits(Suggest)
SCORE: Final = limits(Score)
DESCRIBE: Final = limits(Describe)


def characters(document: Any) -> int:
    """Return the number of characters of all texts in a JSON object's fields, lists included."""
    values = document.values() if isinstance(document, dict) else ()
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return sum(len(text) for text in texts if isinstance(text, str))


def of_text(document: Any) -> int:
    """Return the units of a JSON body: its texts, the alternatives of each token, and the steps of a beam search."""
    fields = document if isinstance(document, dict) else {}
    alternatives = number(fields.get("alternatives"), SCORE["alternatives"]) if fields.get("per_token") else 0
    words, top_k = (number(fields.get(name), SUGGEST[name]) for name in ("words", "top_k"))
    steps = (words - 1) * max(top_k, BEAM)
    return characters(document) * (TOKENS + alternatives) // (TOKENS * CHARACTERS) + steps // STEPS


def of_images(images: int, query: QueryParams) -> int:
    """Return the units of images: a fixed cost each, plus the rows of their beam searches for captions."""
    beam, alternatives = (number(query.get(name), DESCRIBE[name]) for name in ("beam", "alternatives"))
    rows = beam + (alternatives + 1 if alternatives >= beam else 0)
    return images * (IMAGE + rows // ROWS)


def number(value: Any, limits: Limits) -> int:
    """Return a field's value as the route reads it, or the default if it is missing or invalid."""
    least, most, default = limits
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return default or 0
    return int(number) if least <= number <= most else default or 0
