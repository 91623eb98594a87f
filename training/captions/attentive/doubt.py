"""Fitting and measuring of a captioner's confidence."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from app.runtime.families.captions import Description
from app.runtime.families.confidence import Confidence, Signs, inputs, squared
from training.captions.scores import CiderD
from training.captions.vocabulary import words

RIGHT = 0.25  # CIDEr-D, 0 to 10, from which a caption counts as right
LOST = 0.03  # share of photographs whose confidence is below the threshold
DECAY = 1e-2  # of the weights of standardised inputs
OTHERS = 0.5  # importance of all other images, of the photographs' 1: with more, photographs are doubted too much
BINS = 10

Floats = npt.NDArray[np.float64]


def right(answers: Sequence[Description], references: Sequence[Sequence[str]]) -> Floats:
    """Return 1 for each caption that agrees with what people say of its photograph, else 0."""
    cider_d = CiderD([[words(caption) for caption in group] for group in references])
    scores = [cider_d(index, words(answer.text)) for index, answer in enumerate(answers)]
    return np.array([float(score >= RIGHT) for score in scores])


def fit(photographs: Sequence[Signs], is_right: Floats, others: Sequence[Signs]) -> dict[str, float]:
    """Return the calibration of a `Confidence`: of photographs, right or not, and of other images, which are not.

    The threshold is above LOST of the photographs.
    """
    rows = torch.tensor(np.stack([inputs(signs) for signs in (*photographs, *others)]))
    targets = torch.cat([torch.tensor(is_right), torch.zeros(len(others), dtype=torch.float64)])
    other = OTHERS * len(photographs) / len(others)
    importance = torch.cat([torch.ones(len(photographs)), torch.full((len(others),), other)])
    mean, deviation = rows.mean(0), rows.std(0) + 1e-9
    weights = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = (rows - mean) / deviation @ weights[1:] + weights[0]
        value = F.binary_cross_entropy_with_logits(logits, targets, importance) + DECAY * weights[1:].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    weights = weights.detach()
    scaled = weights[1:] / deviation
    names = (*Signs._fields, *map(squared, Signs._fields))
    calibration = dict(zip(names, scaled.tolist(), strict=True))
    calibration |= {"bias": float(weights[0] - scaled @ mean), "threshold": 0.0}
    confidence = Confidence(calibration)
    threshold = float(np.quantile([confidence(signs) for signs in photographs], LOST))
    return calibration | {"threshold": threshold}


def measure(
    photographs: Sequence[Signs], is_right: Floats, others: Sequence[Signs], fresh: Sequence[Signs]
) -> dict[str, float]:
    """Return the shares of photographs answered and of fresh images rejected, and the calibration error on photographs.

    Each half of the photographs is measured with a confidence fitted on the other half and `others`.
    `calibration_error` is the expected one, over BINS equal bins of confidence.
    """
    found, answered, rejected = np.empty(len(photographs)), list[bool](), list[bool]()
    for half in (0, 1):
        confidence = Confidence(fit(photographs[1 - half :: 2], is_right[1 - half :: 2], others))
        found[half::2] = [confidence(signs) for signs in photographs[half::2]]
        answered += (found[half::2] >= confidence.threshold).tolist()
        rejected += [confidence(signs) < confidence.threshold for signs in fresh]
    bins = np.minimum((found * BINS).astype(int), BINS - 1)
    gaps = [abs((found - is_right)[bins == index].sum()) for index in range(BINS)]
    return {
        "answered": float(np.mean(answered)),
        "rejected": float(np.mean(rejected)),
        "calibration_error": float(sum(gaps) / len(found)),
    }
