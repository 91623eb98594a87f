"""Costs of request bodies in units of rate limits, beyond the base cost of one unit a request.

A unit is about 2.5 ms of a core. Invalid fields add nothing to the base cost.
"""

from typing import Any, Final

from starlette.datastructures import QueryParams

CHARACTERS: Final = 100  # of text per unit
IMAGE: Final = 4  # units per image
BEAM: Final = 10  # minimum beam width of the search for runs of words, as in the predictor
STEPS: Final = 10  # steps of one beam row (a word each) per unit
TOKENS: Final = 40  # alternatives that cost as much as the score of their position
ROWS: Final = 6  # beam rows of a caption search per unit


def characters(document: Any) -> int:
    """Return the number of characters of all texts in a JSON object's fields, lists included."""
    values = document.values() if isinstance(document, dict) else ()
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return sum(len(text) for text in texts if isinstance(text, str))


def of_text(document: Any) -> int:
    """Return the units of a JSON body: its texts, the alternatives of each token, and the steps of a beam search."""
    fields = document if isinstance(document, dict) else {}
    alternatives = number(fields.get("alternatives"), 0, 10, 0) if fields.get("per_token") else 0
    steps = (number(fields.get("words"), 1, 5, 1) - 1) * max(number(fields.get("top_k"), 1, 50, 5), BEAM)
    return characters(document) * (TOKENS + alternatives) // (TOKENS * CHARACTERS) + steps // STEPS


def of_images(images: int, query: QueryParams) -> int:
    """Return the units of images: a fixed cost each, plus the rows of their beam searches for captions."""
    beam = number(query.get("beam"), 1, 10, 3)
    alternatives = number(query.get("alternatives"), 0, 9, 0)
    rows = beam + (alternatives + 1 if alternatives >= beam else 0)
    return images * (IMAGE + rows // ROWS)


def number(value: Any, least: int, most: int, default: int) -> int:
    """Return a field's value as the route reads it, or `default` if it is missing or invalid."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return int(number) if least <= number <= most else default
