"""Characters as people and programs leave them in texts: stand-ins of the apostrophe, HTML entities, invisible ones."""

import html
import re
from collections.abc import Iterator
from html.entities import html5
from typing import Final

APOSTROPHES: Final = (
    "'`\u00b4\u02b9\u02bb\u02bc\u02bd\u02c8\u02ca\u02cb\u055a\u05f3\u07f4\u07f5\u2018\u2019\u201b\u2032\u2035"
    "\ua78b\ua78c\uff07\uff40"
)
"""Typed as an apostrophe inside words, the ASCII one first."""
SEPARATORS: Final = "\u200b\u115f\u1160\u3164\uffa0"
"""Invisible and no white space, but part words: the zero-width space and the fillers of Hangul."""
ENTITY: Final = re.compile(r"&(?:amp;)*(#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]{1,31};)")
"""A character reference of HTML, with its semicolon; also escaped more than once."""


def unescaped(text: str) -> str:
    """Replace the HTML entities; names that HTML does not have stay."""
    return ENTITY.sub(_character, text) if "&" in text else text


def unescaped_characters(text: str) -> Iterator[tuple[str, int]]:
    """Yield the characters of `unescaped(text)`, each with its offset in `text`, an entity's with that of its `&`."""
    position = 0
    for match in ENTITY.finditer(text):
        yield from zip(text[position : match.start()], range(position, match.start()), strict=True)
        if (character := _character(match)) == match[0]:
            yield from zip(match[0], range(match.start(), match.end()), strict=True)
        else:
            yield from ((each, match.start()) for each in character)
        position = match.end()
    yield from zip(text[position:], range(position, len(text)), strict=True)


def _character(match: re.Match[str]) -> str:
    name = match[1]
    return html.unescape(f"&{name}") if name[0] == "#" or name in html5 else match[0]
