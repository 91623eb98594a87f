"""Benchmark the served captioner against the same weights in eager torch, single-threaded, alternating.

    .venv/bin/python -m tests.bench.captions

A synthetic 500 x 375 JPEG to its caption, with a beam of 3. Each result is the best of ROUNDS. The last line is the
table as JSON. Both decode and resize the photograph with app.images; torch runs the network with folded batch norms in
channels-last layout.
"""

import io
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from app import bundle as bundles
from app.bundle import Bundle
from app.images import PHOTO_SIZE, decoded, normalised, photo
from app.runtime.families.captions import CaptionsPredictor, Describe
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from app.text.words import Vocabulary
from tests.bench.serving.peers.eager import captioner_of, network_of
from training.captions.decoding import beam_search, seen

STORE, MODEL = Path("models_store"), "captions"
ROUNDS = 60
BEAM = 3


class Eager:
    """The torch modules in inference mode."""

    def __init__(self, bundle: Bundle, vocabulary: Vocabulary) -> None:
        self._config = bundle.manifest.config
        self._vocabulary = vocabulary
        stored = {name: value.float() for name, value in load_file(bundle.path("weights.safetensors")).items()}
        cnn = {name.removeprefix("cnn."): value for name, value in stored.items() if name.startswith("cnn.")}
        self._network = network_of(self._config["backbone"], cnn)
        self._captioner = captioner_of(self._config, stored)

    @torch.inference_mode()
    def describe(self, content: bytes) -> str:
        """Return the caption of an encoded image."""
        pixels = photo(decoded(content, least=PHOTO_SIZE))
        image = torch.from_numpy(normalised(pixels[None])).to(memory_format=torch.channels_last)
        penalty, length = self._config["length_penalty"], self._config["length"]
        features = self._network(image)
        (found,) = beam_search(seen(self._captioner, features), self._vocabulary, BEAM, length, length_penalty=penalty)
        return " ".join(self._vocabulary.tokens[token] for token in found.tokens)


def served_caption(predictor: CaptionsPredictor, content: bytes) -> str:
    """Return the caption by the server's predictor."""
    (answer,) = answer_all(predictor, [predictor.prepare(Describe(content, beam=BEAM))])
    return str(answer.caption)


def synthetic_photograph() -> bytes:
    """Return a JPEG of smooth random colours, 500 x 375."""
    coarse = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def main() -> None:
    """Run the benchmark and print the table."""
    torch.set_num_threads(1)
    bundle = bundles.read(STORE / MODEL / bundles.current(STORE, MODEL))
    predictor = load_predictor(bundle, threads=1)
    assert isinstance(predictor, CaptionsPredictor)
    content, eager = synthetic_photograph(), Eager(bundle, Vocabulary(bundle.text("vocabulary.txt").split("\n")))
    candidates: dict[str, Callable[[], str]] = {
        "served": partial(served_caption, predictor, content),
        "torch": partial(eager.describe, content),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, describe in candidates.items():
            times[name].append(_milliseconds(describe))
    ours, theirs = (min(times[name]) for name in candidates)
    print(f"{MODEL} {bundle.manifest.version}, {bundle.manifest.served} graphs, one thread, beam {BEAM}\n")
    print(*(f"{name}: {describe()}" for name, describe in candidates.items()), sep="\n")
    print(f"\n{'':30}{'served':>10}{'torch':>10}{'times faster':>14}")
    print(f"{'500x375 JPEG to caption, ms':30}{ours:10.3f}{theirs:10.3f}{theirs / ours:14.1f}")
    print(json.dumps({"500x375 JPEG to caption, ms": {"served": ours, "torch": theirs}}))


def _milliseconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
