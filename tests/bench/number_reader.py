"""Benchmark of the number reader: numbers composed from MNIST's test digits, images without one, and the time of each.

    python -m tests.bench.number_reader --data DATA/mnist --store STORE --model numbers

Images go through decoding, the search for the row and the served graph, as in the server; a rejected number is wrong.
`pasted` are MNIST's frames side by side, which is not how training composes them. The last line is JSON.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from app import bundle as bundles
from app.runtime.families.numbers import Number, NumbersPredictor, ReadNumber
from app.runtime.loading import load_predictor
from training.digits import data
from training.digits.composing import Pixels, Rng
from training.digits.data import Digits
from training.digits.negatives import BENCHMARK_NEGATIVES
from training.digits.number_publish import digits_right, exact
from training.digits.numbers import MAX_DIGITS, number_image

SEED: Final = 20_261_130  # training and publishing compose with seeds of their own
CONFIDENT: Final = 0.9


def pasted(digits: Digits, length: int, rng: Rng) -> tuple[Pixels, list[int]]:
    """Return MNIST's frames (28, 28) side by side, eight pixels less or four more apart, dark on light."""
    chosen = rng.integers(len(digits), size=length)
    pitch = 28 + int(rng.integers(-8, 5))
    image = np.zeros((44, 28 + pitch * (length - 1) + 16), np.uint8)
    for index, each in enumerate(chosen):
        part = image[8:36, 8 + pitch * index : 36 + pitch * index]
        np.maximum(part, digits.images[each].numpy(), out=part)
    return 255 - image, digits.labels[chosen].tolist()


def turned(digits: Digits, length: int, rng: Rng) -> tuple[Pixels, list[int]]:
    """Return a number on a photograph taken askew, by 3 to 6 degrees."""
    image, labels = number_image(digits, length, rng, touching=False)
    angle = float(rng.uniform(3, 6) * rng.choice((-1, 1)))
    ground = int(np.median(image))
    return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, True, fillcolor=ground)), labels


Compose = Callable[[Digits, int, Rng], tuple[Pixels, list[int]]]
KINDS: Final[dict[str, tuple[Compose, tuple[int, ...]]]] = {  # composer and lengths
    "1 to 12 digits": (number_image, tuple(range(1, MAX_DIGITS + 1))),
    "5 digits": (number_image, (5,)),
    "5 digits, apart": (partial(number_image, touching=False), (5,)),
    "5 digits, touching": (partial(number_image, touching=True), (5,)),
    "1 to 12 digits, pasted": (pasted, tuple(range(1, MAX_DIGITS + 1))),
    "3 to 12 digits, askew": (turned, tuple(range(3, MAX_DIGITS + 1))),
}


def read(predictor: NumbersPredictor, images: Iterator[Pixels]) -> tuple[list[Number], float]:
    """Read images encoded as PNG; return the answers and the milliseconds of each."""
    files = list[bytes]()
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        files.append(stream.getvalue())
    started = time.process_time()
    answers = [predictor.read(predictor.prepare(ReadNumber(content))) for content in files]
    return answers, 1000 * (time.process_time() - started) / len(files)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--store", type=Path, default=Path("models_store"))
    parser.add_argument("--model", default="numbers")
    parser.add_argument("--images", type=int, default=600, help="of each kind")
    options = parser.parse_args()
    bundle = bundles.read(options.store / options.model / bundles.current(options.store, options.model))
    predictor = load_predictor(bundle, threads=1)
    assert isinstance(predictor, NumbersPredictor)
    digits, table = data.load(options.data).test, dict[str, dict[str, float]]()
    print(f"{options.model} {bundle.manifest.version}, {options.images} images of each kind, in %\n")
    print(f"{'kind':26}{'digits':>8}{'numbers':>9}{'rejected':>10}{'confident errors':>18}{'ms':>7}")
    for kind, (compose, lengths) in KINDS.items():
        rng = np.random.default_rng([SEED, *kind.encode()])
        made = [compose(digits, lengths[index % len(lengths)], rng) for index in range(options.images)]
        answers, taken = read(predictor, (image for image, _ in made))
        pairs = [(answer, "".join(map(str, labels))) for answer, (_, labels) in zip(answers, made, strict=True)]
        wrong = [answer.number not in (None, truth) and answer.confidence >= CONFIDENT for answer, truth in pairs]
        table[kind] = {
            "digits": round(100 * digits_right(pairs), 2),
            "numbers": round(100 * exact(pairs), 2),
            "rejected": round(100 * float(np.mean([answer.number is None for answer in answers])), 2),
            "confident_errors": round(100 * float(np.mean(wrong)), 2),
            "ms": round(taken, 2),
        }
        print(f"{kind:26}" + "{digits:8}{numbers:9}{rejected:10}{confident_errors:18}{ms:7}".format(**table[kind]))
    for kind, draw in BENCHMARK_NEGATIVES.items():
        rng = np.random.default_rng([SEED, *kind.encode()])
        answers, _ = read(predictor, (draw(rng) for _ in range(options.images)))
        rejected = round(100 * float(np.mean([answer.number is None for answer in answers])), 2)
        table[kind] = {"rejected": rejected}
        print(f"{kind:26}{'':17}{rejected:10}")
    print(json.dumps({options.model: table}))


if __name__ == "__main__":
    main()
