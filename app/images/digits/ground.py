"""Contrast of ink with its ground: plain, striped, shaded, or with the edge of a shadow across it."""

from typing import Final

import cv2
import numpy as np

from app.images.pixels import Bytes, Floats, middle, outermost

STRIPED: Final = 0.085  # of the ink's strength: pixels of a plain or striped ground are no further from ground and ink
_BITMAP_SIDE: Final = 20  # pixels: an image as small as that has one level of ground, though ink may touch all edges
_WINDOWS: Final = (0.4, 0.2)  # of the shorter side: narrower shapes may be ink. A shadow's edge needs the smaller one


def contrast(pixels: Bytes) -> tuple[Floats, float]:
    """Return the contrast (H, W) with the ground, positive where there is ink, and its noise (a standard deviation).

    The ground is whichever explains the image: one level, the ends of each row or column, or what remains when all
    that is narrow is closed, darker or lighter.
    """
    grey = pixels.astype(np.float32)
    edge = np.sort(outermost(pixels))
    away = grey - float(edge[len(edge) // 2])
    plain = away * _sign(away)  # ink is what is furthest from the ground
    noise = _noise(plain)
    unevenness = float(edge[len(edge) * 9 // 10]) - float(edge[len(edge) // 10])
    bitmap = max(pixels.shape) <= _BITMAP_SIDE
    if bitmap or unevenness <= 0.15 * float(np.abs(plain).max()) + 3 * noise:
        return plain, noise
    banded = (_banded(grey), _banded(grey.T).T)
    clean = [ink for ink in (plain, *banded) if _between(np.abs(ink)) < STRIPED]
    if clean:
        return min(clean, key=lambda ink: float(np.abs(ink).mean())), noise
    wide, narrow = _closed(pixels)
    ink = min((*banded, wide, narrow), key=lambda ink: _between(np.maximum(ink, 0)))
    if ink is narrow and _between(np.maximum(ink, 0)) > STRIPED:
        ink = wide
    return ink, max(_noise(ink), 5.0)  # such a ground is known no better


def strongest(ink: Floats) -> float:
    """Return a value that a few pixels reach."""
    rank = min(ink.size, max(8, ink.size // 2000))
    upper = ink[ink > float(ink.max()) / 2]  # most often there are enough, and few to be sorted
    some = upper if upper.size >= rank else ink
    return float(np.partition(some, some.size - rank, axis=None)[-rank])


def undecided(ink: Floats, strong: float) -> float:
    """Return the mean distance of pixels from ground and ink of that strength: 0 if all are either, 0.5 if none is."""
    return float(np.minimum(ink, np.abs(strong - ink)).mean()) / strong


def _between(ink: Floats) -> float:
    return undecided(ink, max(strongest(ink), 1e-6))


def _noise(ink: Floats) -> float:
    """Standard deviation of what is neither ink nor an edge of it, since both are few."""
    some = ink[:: 1 + ink.size // 2**14]
    steps = np.abs(some[:, 1:] - some[:, :-1])
    return min(1.05 * middle(steps) if steps.size else 0.0, 1.5 * middle(np.abs(some)))


def _sign(away: Floats) -> float:
    return 1.0 if float((away * away * away).sum()) >= 0 else -1.0


def _banded(grey: Floats) -> Floats:
    """Contrast with the ends of each column, whichever is lighter."""
    away: Floats = np.abs(grey - (grey[0] + grey[-1]) / 2)
    return away


def _closed(pixels: Bytes) -> list[Floats]:
    """Contrast with the ground that morphological closing leaves, for windows of several sizes.

    Ink takes a share of the light, and there is less of it in the shade.
    """
    around = cv2.resize(cv2.resize(pixels, (5, 5), interpolation=cv2.INTER_AREA), pixels.shape[::-1])
    dark = _sign(pixels.astype(np.float32) - around) < 0
    page = pixels if dark else 255 - pixels
    smooth = cv2.GaussianBlur(page, (3, 3), 0) if min(page.shape) > 3 else page
    found = []
    for share in _WINDOWS:
        side = max(5, round(share * min(page.shape)) | 1)
        pad = side // 2
        padded = cv2.copyMakeBorder(smooth, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        ground = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))[pad:-pad, pad:-pad]
        away = ground.astype(np.float32) - page
        if dark:
            away *= 255 / np.maximum(ground, 16).astype(np.float32)
        away -= middle(away)
        found.append(away)
    return found
