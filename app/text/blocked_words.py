"""Words that are never suggested."""

from pathlib import Path
from typing import Final

from app.errors import SettingsError


def blocked_words(*files: Path) -> frozenset[str]:
    """Return the words of `files`, case-folded: a word a line, comments after `#`.

    Raise SettingsError for a file that can't be read or isn't UTF-8.
    """
    found: set[str] = set()
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: expected a UTF-8 file of words, one a line: {error}") from error
        found.update(line.split("#")[0].strip().casefold() for line in lines)
    return frozenset(found - {""})


BLOCKED_WORDS: Final = blocked_words(Path(__file__).with_name("blocked_words.txt"))
