"""Answer checks: a peer is measured only if its answers equal those of seqserve within a tolerance."""

from typing import Any, Final

import httpx

from tests.bench.serving.contenders import Contender
from tests.bench.serving.workloads import Workload

CHECKED: Final[dict[str, int]] = {"typing": 64, "cold": 4, "scoring": 2, "digits": 8, "captions": 4}  # requests
# Largest difference of a probability. Eager torch computes in float32, seqserve in int8: see the model card.
TOLERANCES: Final = {"int8": 1e-3, "torch": 2e-2, "": 1e-3}
PERPLEXITY: Final = 5e-3  # relative


class WrongAnswers(RuntimeError):
    """A peer's answer differs from that of seqserve."""


def answers(url: str, workload: Workload) -> list[dict[str, Any]]:
    """Return the answers to the workload's first requests; raise WrongAnswers for a status other than 200."""
    found = []
    with httpx.Client(base_url=url, timeout=120) as client:
        for body in workload.bodies[: CHECKED[workload.name]]:
            headers = {"Content-Type": workload.content_type}
            response = client.post(f"/{workload.kind}", content=body, headers=headers)
            if response.status_code != 200:
                raise WrongAnswers(
                    f"{url}/{workload.kind}: expected 200, found {response.status_code}: {response.text}"
                )
            found.append(response.json())
    return found


def require_alike(
    contender: Contender, workload: Workload, found: list[dict[str, Any]], ours: list[dict[str, Any]]
) -> None:
    """Raise WrongAnswers for the first answer that differs."""
    for index, (theirs, expected) in enumerate(zip(found, ours, strict=True)):
        if difference := differs(workload.kind, theirs, expected, TOLERANCES[contender.engine]):
            raise WrongAnswers(f"{contender.name}: request {index} of {workload.name}: {difference}")


def differs(kind: str, found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> str | None:
    """Return a description of the difference, or None within the tolerance."""
    if found.keys() != expected.keys():
        return f"expected the fields {sorted(expected)}, found {sorted(found)}"
    return DIFFERENCES[kind](found, expected, tolerance)


def _suggestions(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> str | None:
    """Compare by text: near ties may be ordered differently, or differ in the last suggestion."""
    theirs, ours = (
        {each["text"]: each["probability"] for each in answer["suggestions"]} for answer in (found, expected)
    )
    least = min(ours.values(), default=0.0)
    alike = len(theirs) == len(ours) and all(
        abs(theirs.get(text, least) - ours.get(text, least)) <= tolerance for text in theirs.keys() | ours.keys()
    )
    return None if alike else f"expected {ours}, found {theirs}"


def _score(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> str | None:
    theirs, ours = found["corpus"], expected["corpus"]
    alike = theirs["tokens"] == ours["tokens"] and abs(theirs["perplexity"] / ours["perplexity"] - 1) <= PERPLEXITY
    return None if alike else f"expected {ours}, found {theirs}"


def _digit(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> str | None:
    (theirs,), (ours,) = found["results"], expected["results"]
    furthest = max(abs(a - b) for a, b in zip(theirs["probabilities"], ours["probabilities"], strict=True))
    return None if theirs["digit"] == ours["digit"] and furthest <= tolerance else f"expected {ours}, found {theirs}"


def _caption(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> str | None:
    """Compare log-probabilities: rounding may lead the search to an equally likely caption."""
    (theirs,), (ours,) = found["results"], expected["results"]
    alike = theirs["caption"] == ours["caption"]
    near = abs(theirs["log_probability"] - ours["log_probability"]) <= (0.1 if alike else 0.5)
    return None if near else f"expected {ours}, found {theirs}"


DIFFERENCES: Final = {
    "next-word": _suggestions,
    "perplexity": _score,
    "digits": _digit,
    "captions": _caption,
}
