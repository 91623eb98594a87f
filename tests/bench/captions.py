"""Benchmark a served captioner against the same model in eager torch, single-threaded, alternating.

    .venv/bin/python -m tests.bench.captions [--store models_store] [--model captions] [--photograph FILE]

A synthetic 500 x 375 JPEG to its caption with a beam of 3, of an attentive captioner with the detector and without it.
Each result is the processor time's best of ROUNDS and median; the ratio is that of the medians. Both decode and resize
the photograph with app.images and share the beam search; torch runs in float32 at the sizes of training. The last line
is the table of medians as JSON.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from app import bundle as bundles
from app.runtime.families.captions import CaptionsPredictor, Describe
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from tests.bench.serving.peers import eager

ROUNDS = 30
BEAM = 3


def caption(predictor: CaptionsPredictor, content: bytes, *, tags: bool) -> str:
    """Return the caption of an encoded image."""
    (answer,) = answer_all(predictor, [predictor.prepare(Describe(content, beam=BEAM, tags=tags, threshold=0.0))])
    return str(answer.text)


def synthetic_photograph() -> bytes:
    """Return a JPEG of smooth random colours, 500 x 375."""
    coarse = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("models_store"))
    parser.add_argument("--model", default="captions")
    parser.add_argument("--photograph", type=Path, help="by default a synthetic one")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    bundle = bundles.read(options.store / options.model / bundles.current(options.store, options.model))
    served, torch = load_predictor(bundle, threads=1), eager.captions(bundle, threads=1)
    assert isinstance(served, CaptionsPredictor)
    content = options.photograph.read_bytes() if options.photograph else synthetic_photograph()
    modes = {"with tags": True, "without tags": False} if served.decoder.attends else {"to caption": False}
    candidates: dict[str, Callable[[], str]] = {
        f"{name}, {mode}": partial(caption, predictor, content, tags=tags)
        for mode, tags in modes.items()
        for name, predictor in (("served", served), ("torch", torch))
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, describe in candidates.items():
            started = time.process_time()
            describe()
            times[name].append(1000 * (time.process_time() - started))
    print(
        f"{bundle.manifest.model} {bundle.manifest.version}, {bundle.manifest.served} graphs, one core, beam {BEAM}\n"
    )
    print(f"{'ms':24}{'best':>9}{'median':>9}")
    medians = {name: float(np.median(values)) for name, values in times.items()}
    for name, describe in candidates.items():
        print(f"{name:24}{min(times[name]):9.1f}{medians[name]:9.1f}  {describe()}")
    for mode in modes:
        print(f"{mode}: {medians[f'torch, {mode}'] / medians[f'served, {mode}']:.1f} times faster than eager torch")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
