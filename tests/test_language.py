"""The language of docstrings and documents: the field's terms, in plain sentences."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
MODULES: Final = sorted(
    path for folder in ("app", "training", "tests", "clients") for path in (ROOT / folder).rglob("*.py")
)
OPENING: Final = re.compile(r"\W*(what|who|whether|those|how)\b", re.IGNORECASE)
SOURCES: Final = sorted(
    path
    for folder in ("app", "training", "tests", "clients", "deploy", "docs", "docker", "requirements")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".cpp", ".js", ".html", ".css", ".md", ".yml", ".toml", ".sh", ".json", ".Dockerfile"}
    and path != Path(__file__)
) + sorted(path for path in ROOT.iterdir() if path.suffix in {".md", ".toml", ".yml"} or path.name == "Makefile")
PHRASES: Final = (  # each has a standard term: request, client, report, log, reject, cancel, comma-separated, step
    "who asks",
    "whoever",
    "askers?",
    "is told",
    "are told",
    "told by",
    "tells of",
    "nobody foresaw",
    "parted",
    "give up",
    "gives up",
    "given up",
    "a slip",
    "eats no quota",
    "passed over",
    "what is the operator's",
    "turned away",
    "stands in",
)
WORDS: Final = re.compile("|".join(rf"\b{phrase}\b".replace(" ", r"\s+") for phrase in PHRASES), re.IGNORECASE)


def openings(path: Path) -> list[str]:
    """Return the first lines of the docstrings that open with a question word."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [
        ast.get_docstring(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, documented)
    ]
    return [text.partition("\n")[0] for text in found if text and OPENING.match(text)]


def test_no_docstring_opens_with_a_question_word() -> None:
    found = [f"{path.relative_to(ROOT)}: {line}" for path in MODULES for line in openings(path)]
    assert not found, "\n".join(found)


def test_no_source_and_no_document_uses_a_private_phrase() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in SOURCES
        for match in WORDS.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("text", "matches"), [("What a route needs.", True), ("Return what is needed.", False)])
def test_an_opening_is_the_first_word(text: str, matches: bool) -> None:
    assert bool(OPENING.match(text)) == matches
