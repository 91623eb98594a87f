"""Benchmark a served digit reader on images of every kind, composed from MNIST's test digits and read as in the server.

    python -m tests.bench.digit_kinds --data ../shared/data/mnist [--store models_store] [--images 50] [--sheet FOLDER]

Prints for each kind the share that is right, rejected, and wrong with a confidence of 0.9 and more. Crossed out and
garbled digits and pairs are right if rejected or answered with less confidence. The last line is JSON.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from app import bundle as bundles
from app.runtime.families.digits import Classification, Classify, DigitsPredictor
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from training.digits import data
from training.digits.composing import Pixels
from training.digits.data import Digits
from training.digits.kinds import DIGIT_KINDS, DOUBTFUL_KINDS
from training.plots import contact_sheet

SEED: Final = 20_261_130  # training composes with seeds of its own
CONFIDENT: Final = 0.9


class Example(NamedTuple):
    """An encoded image, its digit, and the label of a contact sheet."""

    content: bytes
    pixels: Pixels
    digit: int


def examples(kind: str, digits: Digits, count: int) -> list[Example]:
    """Compose `count` images of a kind: as PNG, every third as JPEG. Zeros alone for slashed zeros."""
    rng = np.random.default_rng([SEED, *kind.encode()])
    labels = digits.labels.numpy()
    usable = np.flatnonzero(labels == 0) if kind == "slashed zero" else np.arange(len(labels))
    made = []
    for index, one, other in zip(range(count), *rng.choice(usable, (2, count)), strict=False):
        digit, label = digits.images[one].numpy(), int(labels[one])
        if kind in DOUBTFUL_KINDS:
            pixels = DOUBTFUL_KINDS[kind](digit, digits.images[other].numpy(), rng)
        else:
            pixels = DIGIT_KINDS[kind](digit, label, rng)
        stream = io.BytesIO()
        small = min(pixels.shape[:2]) < 64  # scans and photographs are JPEGs
        form = (
            {"format": "JPEG", "quality": int(rng.integers(60, 95))}
            if index % 3 == 0 and not small
            else {"format": "PNG"}
        )
        Image.fromarray(pixels).save(stream, **form)
        made.append(Example(stream.getvalue(), pixels, label))
    return made


def right(kind: str, example: Example, answer: Classification) -> bool:
    """Return whether the answer is the digit or, of a doubtful kind, a rejection or in doubt."""
    if kind in DOUBTFUL_KINDS:
        return answer.rejected or not wrong_with_confidence(kind, example, answer)
    return answer.digit == example.digit


def wrong_with_confidence(kind: str, example: Example, answer: Classification) -> bool:
    """Return whether another digit, or one of a pair, is answered with CONFIDENT or more."""
    other = answer.digit != example.digit or kind in ("two digits", "touching digits")
    return not answer.rejected and other and answer.confidence >= CONFIDENT


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--store", type=Path, default=Path("models_store"))
    parser.add_argument("--model", default="digits")
    parser.add_argument("--images", type=int, default=50, help="of each kind")
    parser.add_argument("--sheet", type=Path, help="folder for a plot of what is wrong, of each kind")
    options = parser.parse_args()
    bundle = bundles.read(options.store / options.model / bundles.current(options.store, options.model))
    predictor = load_predictor(bundle, threads=1)
    assert isinstance(predictor, DigitsPredictor)
    digits = data.load(options.data).test
    table = {}
    print(f"{options.model} {bundle.manifest.version}, {options.images} images of each kind, in %\n")
    print(f"{'kind':20}{'right':>8}{'rejected':>10}{'confident errors':>18}")
    for kind in (*DIGIT_KINDS, *DOUBTFUL_KINDS):
        made = examples(kind, digits, options.images)
        answers = answer_all(predictor, [predictor.prepare(Classify(example.content)) for example in made])
        pairs = list(zip(made, answers, strict=True))
        shares = {
            "right": np.mean([right(kind, *pair) for pair in pairs]),
            "rejected": np.mean([answer.rejected for answer in answers]),
            "confident_errors": np.mean([wrong_with_confidence(kind, *pair) for pair in pairs]),
        }
        table[kind] = {name: round(100 * float(share), 1) for name, share in shares.items()}
        print(
            f"{kind:20}{table[kind]['right']:8.1f}{table[kind]['rejected']:10.1f}{table[kind]['confident_errors']:18.1f}"
        )
        if options.sheet:
            wrong = [pair for pair in pairs if not right(kind, *pair)]
            _sheet(wrong, options.sheet / f"{kind.replace(' ', '-')}.png")
    print(json.dumps({options.model: table}))


def _sheet(pairs: list[tuple[Example, Classification]], path: Path) -> None:
    """Plot images above what the model saw of each."""
    images, titles = list[Pixels](), list[str]()
    for example, answer in pairs:
        thumbnail = Image.fromarray(example.pixels).convert("L").resize((112, 112), Image.Resampling.BOX)
        seen = Image.fromarray(answer.framed).resize((112, 112), Image.Resampling.NEAREST)
        images.append(np.concatenate([np.asarray(thumbnail), np.asarray(seen)], axis=1))
        titles.append(f"{example.digit}: {answer.digit} {answer.confidence:.2f} {(answer.reason or '')[:12]}")
    if images:
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(images, titles, path)


if __name__ == "__main__":
    main()
