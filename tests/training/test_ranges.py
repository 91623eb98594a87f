"""Ranges in the types of a configuration's fields."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest

from app.errors import SettingsError
from training.ranges import BelowOne, Count, Counts, Positive, Range, Seed, at_least, between, require_ranges


@dataclass(frozen=True)
class Base:
    seed: Seed = 1

    def __post_init__(self) -> None:
        require_ranges(self)


@dataclass(frozen=True)
class Config(Base):
    name: str = "any"
    layers: Counts = (2, 3)
    steps: Count = 1
    rate: Positive = 0.1
    share: BelowOne = 0.0
    length: Annotated[int, at_least(4)] = 4
    pieces: Annotated[int, between(2, 9)] = 2
    clip: Annotated[float | None, "global norm", Range("above 0", lambda value: value is None or value > 0)] = None


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("layers", (), "1 or more"),
        ("layers", (1, 0), "1 or more"),
        ("steps", 0, "1 or more"),
        ("rate", 0.0, "a number above 0"),
        ("rate", math.inf, "a number above 0"),
        ("rate", math.nan, "a number above 0"),
        ("share", 1.0, "0 or more and below 1"),
        ("length", 3, "4 or more"),
        ("pieces", 10, "2 to 9"),
        ("clip", 0.0, "above 0"),
        ("seed", 2**40 + 1, r"0 to 2\^40"),
    ],
)
def test_a_value_out_of_range_is_rejected_by_its_field(field: str, value: Any, expected: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{field}: expected {expected}, found "):
        replace(Config(), **{field: value})


def test_bounds_belong_to_their_range() -> None:
    Config(layers=(1,), steps=1, share=0.0, length=4, pieces=9, clip=1e-9, seed=2**40)


def test_one_error_names_all_faults_in_the_order_of_the_fields() -> None:
    with pytest.raises(SettingsError, match=r"^seed: .+; steps: .+; share: expected 0 or more and below 1, found 2$"):
        Config(share=2, seed=-1, steps=0)
    with pytest.raises(SettingsError, match=r"^patches: too few$"):
        require_ranges(Config(), "patches: too few")
