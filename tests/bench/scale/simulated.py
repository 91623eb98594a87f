"""A server whose language model sleeps instead of computing, so that many replicas fit on two cores.

python -m tests.bench.scale.simulated, with BENCH_STEP_S and the settings of the server in the environment
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, cast

from app.runtime import families
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.scores import TextScore
from app.runtime.scoring import Score
from app.server.serve import serve
from app.settings import Settings

STEP_S: Final = float(os.environ.get("BENCH_STEP_S", "0"))  # of one document on one core; 0 computes
TEXT: Final = "simulated"
DOCUMENT: Final = object()  # the prepared TEXT
SCORE: Final = TextScore(log_likelihood=-1.0, tokens=1, sentences=1, characters=1)


class Simulated(LanguageModelPredictor):
    """A predictor that takes STEP_S to score TEXT and computes all else, its probe among it."""

    def prepare(self, payload: Any) -> Any:
        """Prepare nothing of TEXT."""
        return DOCUMENT if isinstance(payload, Score) and payload.text == TEXT else super().prepare(payload)

    def step(self, examples: Sequence[Any]) -> Any:
        """Take the time of one core for all documents."""
        if examples[0] is not DOCUMENT:
            return super().step(examples)
        time.sleep(STEP_S * len(examples))
        return [SCORE] * len(examples)

    def fits_inline(self, examples: Sequence[Any]) -> bool:  # noqa: ARG002
        """Return False: a sleep would block the event loop."""
        return False


def simulated() -> dict[str, families.Family]:
    """Return the families with a simulated language model, or the real ones for a step of 0 s."""
    found = dict(families.FAMILIES)
    if STEP_S:
        found["language_model"] = replace(found["language_model"], predictor=cast(Any, Simulated))
    return found


if __name__ == "__main__":
    sys.exit(serve(Settings(), families=simulated()))
