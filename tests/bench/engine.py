"""Benchmark the engines of language models on one core, alternating: a keystroke's step, and scoring.

    python tests/bench/engine.py models_store/ptb models_store/everyday

Each argument is a model's folder of a store or a bundle's own. Results are the thread's CPU time, the best of ROUNDS:
of one token read from a state and the likeliest next ones, and of the log-probabilities of all tokens of some texts.
The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from app import bundle as bundles
from app.bundle import Bundle
from app.runtime.recurrent_engine import RecurrentEngine, Segment

ROUNDS, KEYSTROKES, LIKELIEST = 60, 5, 7
TEXTS, TOKENS = 8, 32  # scored in one step: of as many texts as many tokens


def jobs(engine: RecurrentEngine, seed: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return by name a call and the number of keystrokes or tokens that it takes."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(engine.vocabulary_size, size=(TEXTS, TOKENS)).tolist()
    (start,) = engine.run([Segment(engine.initial_state(), tokens[0])])
    key = Segment(start.state, tokens[1][:1], likeliest=LIKELIEST)

    def type_on() -> None:
        for _ in range(KEYSTROKES):
            engine.run([key])

    return {
        "a keystroke": (type_on, KEYSTROKES),
        f"scoring {TEXTS} texts": (
            partial(engine.run, [Segment(start.state, t, score=True) for t in tokens]),
            TEXTS * TOKENS,
        ),
        "scoring a text": (partial(engine.run, [Segment(start.state, [*chain(*tokens)], score=True)]), TEXTS * TOKENS),
    }


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    found = [_bundle(folder) for folder in parser.parse_args().folders]
    names = [f"{bundle.manifest.model} {bundle.manifest.version}" for bundle in found]
    engines = [RecurrentEngine.open(bundle, bundle.manifest.served) for bundle in found]
    work = {
        (name, job): call for name, engine in zip(names, engines, strict=True) for job, call in jobs(engine, 1).items()
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(ROUNDS):
        for key, (call, count) in work.items():
            call()
            started = time.thread_time()
            call()
            best[key] = min(best[key], (time.thread_time() - started) / count * 1e6)
    for (name, job), us in best.items():
        print(f"{name:30}{job:20}{us:10.1f} us{1e6 / us:12,.0f} a second")
    print(json.dumps({name: {job: best[name, job] for job in jobs(engines[0], 1)} for name in names}))


def _bundle(folder: Path) -> Bundle:
    folder = folder.resolve()
    return bundles.read(
        folder / bundles.current(folder.parent, folder.name) if (folder / "CURRENT").exists() else folder
    )


if __name__ == "__main__":
    main()
