"""Upper limits without HTTP: an engine in a loop in this process.

    python -m tests.bench.serving.limits int8|torch SECONDS DATA

The last line is JSON: `typing-N` in requests per second for N concurrent users; `scoring` and `long` in tokens per
second, for a batch of documents and for one long document.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from app.bundle import Bundle
from app.runtime.families.language_model import Suggest
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from app.runtime.scoring import Score
from tests.bench.serving.peers.engines import bundle_of
from tests.bench.serving.workloads import long_document, workloads

CONNECTIONS: Final = (1, 16, 64)
DOCUMENTS: Final = 16  # per batch
LONG_WORDS: Final = 2000  # of the long document; the rate does not depend on its length
CACHE_BYTES: Final = 64 * 2**20  # the server's default

Ask = Callable[[Sequence[dict[str, Any]]], Any]


def main() -> None:
    """Measure and print the rates."""
    engine, seconds, data = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    suggest, score = ENGINES[engine](bundle_of("language_model"))
    made = workloads(data)
    typing, documents = ([json.loads(body) for body in made[name]().bodies] for name in ("typing", "scoring"))
    results = {f"typing-{people}": _rate(suggest, typing, people, seconds) for people in CONNECTIONS}
    results["scoring"] = _rate(score, documents, DOCUMENTS, seconds) * _tokens(documents[0])
    start = {"text": " ".join(long_document(data).split()[:LONG_WORDS])}
    results["long"] = _rate(score, [start], 1, seconds) * _tokens(start)
    print(json.dumps({name: round(result, 1) for name, result in results.items()}))


def _int8(bundle: Bundle) -> tuple[Ask, Ask]:
    predictor: Any = load_predictor(bundle, threads=1, cache_bytes=CACHE_BYTES)

    def ask(payloads: Sequence[Any]) -> Any:
        return answer_all(predictor, [predictor.prepare(payload) for payload in payloads])

    return (
        lambda asked: ask([Suggest(each["text"], complete=each.get("complete", False)) for each in asked]),
        lambda asked: ask([Score(each["text"]) for each in asked]),
    )


def _torch(bundle: Bundle) -> tuple[Ask, Ask]:
    from tests.bench.serving.peers.eager import EagerLanguageModel

    model = EagerLanguageModel(bundle, 1)
    return lambda asked: model.suggest([{"top_k": 5, "complete": False} | each for each in asked]), model.score


ENGINES: Final[dict[str, Callable[[Bundle], tuple[Ask, Ask]]]] = {"int8": _int8, "torch": _torch}


def _rate(ask: Ask, asked: Sequence[dict[str, Any]], size: int, seconds: float) -> float:
    """Return requests per second in batches of `size`, without the first batch."""
    batches = _batches(asked, size)
    ask(next(batches))
    done, taken, began = 0, 0.0, time.perf_counter()
    while taken < seconds:
        ask(next(batches))
        done += size
        taken = time.perf_counter() - began
    return done / taken


def _batches(asked: Sequence[dict[str, Any]], size: int) -> Any:
    while True:
        rest = iter(asked)
        while len(batch := list(islice(rest, size))) == size:
            yield batch


def _tokens(asked: dict[str, Any]) -> int:
    """Return the number of words plus <eos>."""
    return len(asked["text"].split()) + 1


if __name__ == "__main__":
    main()
