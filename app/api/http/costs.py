"""What requests cost, in units, where rates are limited; one more than this for having come.

A unit is about 2.5 ms of a core. A field that the route will refuse adds nothing: a slip eats no quota.
"""

from typing import Any, Final

from pydantic import BaseModel
from starlette.datastructures import QueryParams

CHARACTERS: Final = 100  # of texts that cost one unit,
IMAGE: Final = 4  # and units that an image costs;
BEAM: Final = 10  # least width of a search for runs of words, as the predictor has it,
STEPS: Final = 10  # steps of one of its rows, a word each, that cost one unit,
PLACES: Final = 40  # alternatives that cost as much as the place in a text that they are told of,
ROWS: Final = 6  # and rows of a search for a caption that cost one unit


def characters(document: Any) -> int:
    """Of all texts in a JSON document's fields, and in lists there."""
    values = document.values() if isinstance(document, dict) else ()
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return sum(len(text) for text in texts if isinstance(text, str))


def of_text(document: Any) -> int:
    """Units for a JSON body: its texts, what is told of each place in them, and the steps of a search for runs."""
    if isinstance(document, BaseModel):
        document = document.model_dump(exclude_unset=True)
    asked = document if isinstance(document, dict) else {}
    length = characters(document)
    alternatives = _count(asked.get("alternatives"), 0, 10, 0) if asked.get("per_token") else 0
    steps = (_count(asked.get("words"), 1, 5, 1) - 1) * max(_count(asked.get("top_k"), 1, 50, 5), BEAM)
    return length * (PLACES + alternatives) // (PLACES * CHARACTERS) + steps // STEPS


def of_images(images: int, query: QueryParams) -> int:
    """Units for images: each itself, and the rows of the search for its caption and, where asked for, a wider one."""
    beam = _count(query.get("beam"), 1, 10, 3)
    alternatives = _count(query.get("alternatives"), 0, 9, 0)
    rows = beam + (alternatives + 1 if alternatives >= beam else 0)
    return images * (IMAGE + rows // ROWS)


def _count(value: Any, least: int, most: int, default: int) -> int:
    """A field as the route will read it; what that refuses costs nothing beside."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return int(found) if least <= found <= most else default
