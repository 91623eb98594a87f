"""Widths that give every cell equally many parameters, so that cells are comparable."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from app.models.language_model import parameter_count
from app.models.recurrent import Cell

Config = TypeVar("Config", bound=Any)  # a frozen dataclass with the fields `cell` and `hidden_sizes`


@cache
def matched(reference: Config, cell: Cell, build: Callable[[Config], nn.Module]) -> Config:
    """Return `reference` with another cell and a first layer whose width gives equally many parameters.

    Of the two widths around the reference's number of parameters the nearer is taken.
    """

    def model(width: int) -> Config:
        return replace(reference, cell=cell, hidden_sizes=(width, *reference.hidden_sizes[1:]))

    one, two, three = (parameters(model(width), build) for width in (1, 2, 3))
    square = (one + three) / 2 - two  # the number of parameters is a polynomial of degree two in the width
    slope = two - one - 3 * square
    count = np.poly1d([square, slope, one - slope - square])
    budget = parameters(reference, build)
    width = int(max((count - budget).roots.real))
    return model(min((max(width, 1), width + 1), key=lambda near: abs(count(near) - budget)))


def parameters(config: Config, build: Callable[[Config], nn.Module]) -> int:
    """Return the number of parameters of the model of `config` without allocating any."""
    with torch.device("meta"):
        return parameter_count(build(config))
