from pathlib import Path

import pytest

from app.errors import SettingsError
from app.text.blocked_words import BLOCKED_WORDS, blocked_words


def test_files_of_words_are_read_case_folded_with_comments(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("\ufeffFoo\n# a comment\n\nBar  # another\n", encoding="utf-8")
    second.write_text("STRASSE", encoding="utf-8")
    assert blocked_words(first, second) == {"foo", "bar", "strasse"}


def test_the_built_in_words_are_case_folded_words() -> None:
    assert len(BLOCKED_WORDS) > 20
    assert all(word.isalpha() and word == word.casefold() for word in BLOCKED_WORDS)


@pytest.mark.parametrize("content", [None, b"caf\xe9"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"words\.txt: expected a UTF-8 file of words"):
        blocked_words(path)
