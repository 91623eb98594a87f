"""Strict decoding of JSON. Imports little: it runs in other processes too."""

import json
from codecs import BOM_UTF8
from itertools import chain
from typing import Any, Final

from app.errors import Malformed, TooLarge

MAX_VALUES: Final = 2**16  # of a large document: more would take long to transfer and to validate


def decoded(content: bytes, max_values: int | None = None) -> Any:
    """Decode JSON. Raise Malformed if it is invalid, TooLarge for more than `max_values` values."""
    objects = 0

    def counted(found: dict[str, Any]) -> dict[str, Any]:
        """Count an object: a document of empty ones would take 25 times its size in memory."""
        nonlocal objects
        objects += 1
        if max_values is not None and objects > max_values:
            raise TooLarge(f"body: expected at most {max_values} values in JSON, found more", unread=False)
        return found

    try:
        text = content.removeprefix(BOM_UTF8).decode()  # json.loads would also take UTF-16, UTF-32 and surrogates
        if "\0" in text:
            raise ValueError("a NUL byte")
        found = json.loads(text, object_hook=None if max_values is None else counted)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"body: expected JSON in UTF-8, found otherwise: {error}") from None
    if max_values is not None and _has_more(found, max_values):
        raise TooLarge(f"body: expected at most {max_values} values in JSON, found more", unread=False)
    return found


def _has_more(document: Any, most: int) -> bool:
    """Return whether the lists and objects of a document hold more than `most` values together."""
    count, level = 0, [document]
    while level:
        level = [each for each in level if isinstance(each, list | dict)]
        count += sum(map(len, level))
        if count > most:
            return True
        level = list(chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level))
    return False
