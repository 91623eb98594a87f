"""Photographs of coloured plates with captions."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "white": (240, 240, 240), "green": (30, 200, 30), "blue": (30, 30, 220)}


def write_plates(folder: Path, counts: Mapping[str, int], colours: int, captions: Sequence[str]) -> Path:
    """Write plates in the first `colours` colours in turn, `counts` of each split, and captions.json; return `folder`.

    `captions` are templates with the field `colour`.
    """
    folder.mkdir()
    images, draw = [], np.random.default_rng(5)
    for split, count in counts.items():
        for number in range(count):
            colour = list(COLOURS)[number % colours]
            pixels = np.clip(np.array(COLOURS[colour]) + draw.normal(0, 10, (24, 24, 3)), 0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            (folder / f"{split}{number}.png").write_bytes(stream.getvalue())
            texts = [each.format(colour=colour) for each in captions]
            images.append({"file": f"{split}{number}.png", "split": split, "captions": texts})
    (folder / "captions.json").write_text(json.dumps({"images": images}))
    return folder
