"""Photographs, manifests and answers of tiny captioners."""

import hashlib
import io

import numpy as np
from PIL import Image

from app.manifest import Manifest
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.predictor import answer_all
from tests.manifests import tiny_manifest


def photograph(seed: int, size: tuple[int, int]) -> bytes:
    """Return a PNG of 4 by 4 fields of random colours."""
    stream = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


def captioner_manifest(vocabulary: bytes, length: int) -> Manifest:
    """Return the manifest of a captioner with captions of at most `length` words."""
    config = {"length": length, "length_penalty": 0.7}
    checksum = hashlib.sha256(vocabulary).hexdigest()
    return tiny_manifest("captions", config=config, normalisation="ptb", vocabulary_sha256=checksum)


def described(predictor: CaptionsPredictor, *payloads: Describe) -> list[Description]:
    """Return the answers of one batch."""
    return answer_all(predictor, [predictor.prepare(payload) for payload in payloads])
