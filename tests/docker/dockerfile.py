"""A parser for the Dockerfile and .dockerignore syntax that this repository uses."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Step(NamedTuple):
    """One instruction."""

    word: str  # RUN, COPY and so on
    text: str  # its arguments, on one line

    @property
    def command(self) -> list[str]:
        """The JSON array of ENTRYPOINT, CMD or HEALTHCHECK."""
        found: list[str] = json.loads(self.text[self.text.index("[") :])
        return found


def stages(file: Path) -> list[list[Step]]:
    """Return the steps of each stage."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    steps = [Step(*line.split(maxsplit=1)) for line in lines if line.strip()]
    starts = [index for index, step in enumerate(steps) if step.word == "FROM"]
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def one(steps: list[Step], word: str) -> Step:
    """Return the only step with this instruction."""
    (found,) = (step for step in steps if step.word == word)
    return found


def copied(steps: list[Step]) -> list[tuple[str, str]]:
    """Return (source, target) of each file or folder copied from the repository."""
    sources = [shlex.split(step.text) for step in steps if step.word == "COPY" and not step.text.startswith("--from=")]
    return [(source, target) for *found, target in sources for source in found]


def environment(steps: list[Step]) -> dict[str, str]:
    """Return the variables set by ENV, unexpanded."""
    words = [word for step in steps if step.word == "ENV" for word in shlex.split(step.text)]
    return dict(word.split("=", 1) for word in words)


def build_context() -> set[str]:
    """Return the top-level names in the build context: .dockerignore excludes all others."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert lines[0] == "*"
    return {line.removeprefix("!") for line in lines if line.startswith("!")}
