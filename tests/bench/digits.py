"""Benchmark the served digit reader against the same weights in eager torch, single-threaded, alternating.

    make bench

torch runs the module on its own recurrent kernels, in float32. Each result is the best of ROUNDS, since other work on a
machine can only make a round slower. The last line is the same table as JSON. Images are noise where a digit's ink
would be, new in each round: what an image shows costs neither side anything.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from app import bundle as bundles
from app.bundle import Bundle
from app.images import png
from app.models.digits import ReNet, RowReader
from app.runtime.families.digits import Classify, DigitsPredictor
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from training.digits.publish import read_config
from training.digits.recipe import as_input, build

STORE, MODEL = Path("models_store"), "digits"
ROUNDS, BATCH, SINGLES = 15, 32, 20

Pixels: TypeAlias = npt.NDArray[np.uint8]
Argument = TypeVar("Argument")


class Served:
    """The published graph behind the predictor that the server uses."""

    def __init__(self, predictor: DigitsPredictor) -> None:
        self._predictor = predictor

    def read(self, pixels: Pixels) -> None:
        """Compute the logits of framed images, (B, 28, 28)."""
        self._predictor.logits(pixels)

    def answer(self, images: Sequence[bytes]) -> None:
        """Decode, frame, classify and calibrate encoded images."""
        answer_all(self._predictor, [self._predictor.prepare(Classify(content)) for content in images])


class Eager:
    """The torch module in inference mode."""

    def __init__(self, module: RowReader | ReNet) -> None:
        self._module = module

    @torch.inference_mode()
    def read(self, pixels: Pixels) -> None:
        """Compute the logits of framed images, (B, 28, 28)."""
        self._module(as_input(torch.from_numpy(pixels)))


def main() -> None:
    """Run the benchmark and print the table."""
    torch.set_num_threads(1)
    bundle = bundles.read(STORE / MODEL / bundles.current(STORE, MODEL))
    predictor = load_predictor(bundle, threads=1)
    assert isinstance(predictor, DigitsPredictor)
    served, eager = Served(predictor), Eager(_module(bundle))

    chance = np.random.default_rng(1)
    rounds: dict[str, dict[str, list[float]]] = {}
    for _ in range(ROUNDS):
        for name, side, taken in _round(served, eager, _images(chance)):
            rounds.setdefault(name, {}).setdefault(side, []).append(taken)

    best = {name: {side: min(times) for side, times in sides.items()} for name, sides in rounds.items()}
    print(f"{MODEL} {bundle.manifest.version}, {predictor.precision} graph, one thread\n")
    print(f"{'ms an image':30}{'served':>10}{'torch':>10}{'times faster':>14}")
    for name, sides in best.items():
        ours, theirs = sides["served"], sides.get("torch")
        print(f"{name:30}{ours:10.3f}" + (f"{theirs:10.3f}{theirs / ours:14.1f}" if theirs else ""))
    print(json.dumps({MODEL: best}))


def _round(served: Served, eager: Eager, images: Pixels) -> Iterator[tuple[str, str, float]]:
    """Yield task, side and milliseconds per image."""
    ones, encoded = [image[None] for image in images[:SINGLES]], [png(image) for image in images]
    for side, read in (("served", served.read), ("torch", eager.read)):
        yield f"graph, {BATCH} images", side, _milliseconds(read, [images]) / BATCH
        yield "graph, one image", side, _milliseconds(read, ones) / SINGLES
    yield f"bytes to answer, {BATCH} images", "served", _milliseconds(served.answer, [encoded]) / BATCH
    yield "bytes to answer, one image", "served", _milliseconds(served.answer, [[one] for one in encoded]) / BATCH


def _module(bundle: Bundle) -> RowReader | ReNet:
    module = build(read_config(bundle.manifest.config))
    module.load_state_dict(load_file(bundle.path("weights.safetensors")))
    return module.eval()


def _images(chance: np.random.Generator) -> Pixels:
    """Return (BATCH, 28, 28) noise within the central 20x20."""
    images = np.zeros((BATCH, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = chance.integers(0, 256, (BATCH, 20, 20), np.uint8)
    return images


def _milliseconds(work: Callable[[Argument], None], arguments: Sequence[Argument]) -> float:
    started = time.perf_counter()
    for argument in arguments:
        work(argument)
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
