"""Tests of where a captioner looks at objects: the pointing game and deletion, each beside a baseline."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.images import DETECTOR_SIZE, ENCODER_SIZE, LABELS, Bytes, Detection, decoded, photo
from app.images.tags import slots
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.families.image_decoders import AttentiveDecoder, Sight
from app.runtime.predictor import answer_all
from app.text import Vocabulary
from training.captions.attentive.mentions import mentions
from training.captions.features import Content

GREY = 127  # of deleted cells: the CNN's zero
DELETED = 8  # cells of 81

Box = tuple[float, float, float, float]  # left, top, width, height
Weights = npt.NDArray[np.float64]


class Look(NamedTuple):
    """A word for an object and where it looked."""

    position: int  # in the caption
    label: str
    weights: Weights  # (9, 9)


def looks(answer: Description) -> list[Look]:
    """Return the looks of the words of an answer that mention an object, pairs of words left out."""
    found = list[Look]()
    for index, word in enumerate(answer.words or ()):
        found += [Look(index, LABELS[label], np.array(word.weights)) for label in mentions([word.text])]
    return found


def measure_looks(
    predictor: CaptionsPredictor, contents: Iterable[Content], vocabulary: Vocabulary, beam: int
) -> dict[str, float]:
    """Return the measures of photographs that are captioned without tags, so that the grid alone shows an object.

    pointing: the share of looks at objects of which the detector sees some but not everywhere (less than half of the
    photograph) whose strongest cell has its centre in a box of the object; centre: that of the photograph's centre.
    deletion: the fall of the word's log-probability, in nats, where the DELETED strongest cells are grey; random: where
    as many drawn ones are.
    """
    decoder = predictor.decoder
    assert isinstance(decoder, AttentiveDecoder)
    draw = np.random.default_rng(1)
    pointed, centred, falls, drawn_falls = list[bool](), list[bool](), list[float](), list[float]()
    for content, name in ((each.content, each.name) for each in contents):
        asked = Describe(content, name, beam, tags=False, attention=True, threshold=0.0)
        (answer,) = answer_all(predictor, [predictor.prepare(asked)])
        seen = looks(answer)
        if not seen:
            continue
        image = decoded(content, name=name, least=DETECTOR_SIZE)
        objects = decoder.detected(image)
        for look in seen:
            boxes = [each.box for each in objects if each.label == look.label]
            if boxes and sum(width * height for _, _, width, height in boxes) < 0.5:
                row, column = np.unravel_index(look.weights.argmax(), look.weights.shape)
                side = len(look.weights)
                pointed.append(_hit(boxes, (column + 0.5) / side, (row + 0.5) / side))
                centred.append(_hit(boxes, 0.5, 0.5))
        pixels, tokens = photo(image, ENCODER_SIZE), vocabulary.ids(word.text for word in answer.words or ())
        look = seen[0]
        strongest = np.argsort(-look.weights.ravel())[:DELETED]
        drawn = draw.choice(look.weights.size, DELETED, replace=False)
        whole, without, drawn_without = (
            _log_probability(decoder, _deleted(pixels, cells), tokens, look.position, vocabulary.end)
            for cells in ((), strongest, drawn)
        )
        falls.append(whole - without)
        drawn_falls.append(whole - drawn_without)
    parts: dict[str, Sequence[float]] = {
        "pointing": pointed,
        "centre": centred,
        "deletion": falls,
        "random": drawn_falls,
    }
    return {name: sum(values) / max(len(values), 1) for name, values in parts.items()}


def found_again(pairs: Iterable[tuple[Sequence[Detection], Sequence[Detection]]]) -> float:
    """Return the share of the first detections that are among the second: the label's, with a common half of area."""
    hits = total = 0
    for expected, found in pairs:
        left = [*found]
        for each in expected:
            match = next((other for other in left if other.label == each.label and _overlap(each.box, other.box)), None)
            if match is not None:
                left.remove(match)
            hits, total = hits + (match is not None), total + 1
    return hits / max(total, 1)


def _overlap(one: Box, other: Box) -> bool:
    """Return whether the intersection is more than half of the union."""
    sides = [
        max(min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]), 0.0)
        for axis in (0, 1)
    ]
    common = sides[0] * sides[1]
    return common > 0.5 * (one[2] * one[3] + other[2] * other[3] - common)


def _hit(boxes: Iterable[Box], across: float, down: float) -> bool:
    return any(left <= across <= left + width and top <= down <= top + height for left, top, width, height in boxes)


def _deleted(pixels: Bytes, cells: Iterable[int]) -> Bytes:
    """Return a photograph (260, 260, 3) with cells of the 9 x 9 grid in grey."""
    edges, changed = np.linspace(0, len(pixels), 10).round().astype(int), pixels.copy()
    for cell in cells:
        row, column = divmod(int(cell), 9)
        changed[edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = GREY
    return changed


def _log_probability(decoder: AttentiveDecoder, pixels: Bytes, tokens: Sequence[int], index: int, end: int) -> float:
    """Return the log-probability of a caption's word after those before it, of a photograph without tags."""
    state, _, *memory = decoder.begin(*decoder.encoded(pixels), slots(())[None])
    sight = Sight(state, tuple(memory))
    for token in (end, *tokens[:index]):
        output = decoder.decode([token], state, [sight], [0])
        state = output.states
    return float(output.log_probabilities[0, tokens[index]])
