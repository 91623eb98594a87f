"""Sigmoid and tanh with the rounding of ONNX Runtime's kernels, bit for bit.

Two implementations that differ in the last bit round some 8-bit hidden states to different values. For comparing a
module with its graph, these use the rational approximations of Eigen that the kernels use, with fused multiply-add.
Slow: for evaluation only.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from app.models.steps import Activations

# Coefficients of the odd numerator and the even denominator, the highest power first.
_TANH: Final = (
    (
        *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08),
        *(1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    ),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)
_SIGMOID: Final = (
    (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01),
    (
        *(6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03),
        *(1.16817656904453e-01, 9.93151921023180e-01),
    ),
)


def tanh(x: Tensor) -> Tensor:
    """float32 (...) -> (...)."""
    return _odd(x.clamp(-9, 9), *_TANH)


def sigmoid(x: Tensor) -> Tensor:
    """float32 (...) -> (...)."""
    return (_odd(x.clamp(-18, 18), *_SIGMOID) + 0.5).clamp(0, 1)


def _odd(x: Tensor, numerator: Sequence[float], denominator: Sequence[float]) -> Tensor:
    square = x * x
    return _polynomial(square, numerator) * x / _polynomial(square, denominator)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's rule with fused multiply-add: a product of two float32 is exact in float64, only the sum is rounded."""
    wide, (first, *others) = x.double(), torch.tensor(coefficients, dtype=torch.float32).double().to(x.device)
    value: Tensor = first.expand_as(wide)
    for coefficient in others:
        value = (value * wide + coefficient).float().double()
    return value.float()


RUNTIME_ACTIVATIONS: Final = Activations(sigmoid, tanh)
