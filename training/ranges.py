"""Types of a configuration's fields that bound their values, with one error for all fields out of range."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias, get_type_hints

from app.errors import SettingsError


@dataclass(frozen=True)
class Range:
    """The range of a field's value, or of each value of a tuple that must not be empty."""

    expected: str
    fits: Callable[[Any], bool]  # false for NaN, as all comparisons are


def at_least(least: int) -> Range:
    """Return the range of finite numbers from `least`."""
    return Range(f"{least} or more", lambda value: least <= value < math.inf)


def between(least: int, most: int) -> Range:
    """Return the range from `least` to `most`, both included."""
    return Range(f"{least} to {most}", lambda value: least <= value <= most)


AT_LEAST_1: Final = at_least(1)
POSITIVE: Final = Range("a number above 0", lambda value: 0 < value < math.inf)
FROM_0: Final = Range("a number from 0", lambda value: 0 <= value < math.inf)
SEED: Final = Range("0 to 2^40", lambda value: 0 <= value <= 2**40)  # torch accepts a million times as much

Count: TypeAlias = Annotated[int, AT_LEAST_1]
Counts: TypeAlias = Annotated[tuple[int, ...], AT_LEAST_1]
CountFrom0: TypeAlias = Annotated[int, FROM_0]
Positive: TypeAlias = Annotated[float, POSITIVE]
NotNegative: TypeAlias = Annotated[float, FROM_0]
Finite: TypeAlias = Annotated[float, Range("a number", math.isfinite)]
BelowOne: TypeAlias = Annotated[float, Range("0 or more and below 1", lambda value: 0 <= value < 1)]
Probability: TypeAlias = Annotated[float, between(0, 1)]
Seed: TypeAlias = Annotated[int, SEED]


def require_ranges(config: Any, *further: str) -> None:
    """Raise SettingsError that names every field of a dataclass out of its type's range, and the `further` faults."""
    faults = []
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        found = getattr(config, name)
        values = found if isinstance(found, tuple) else (found,)
        ranges = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range)]
        if any(not values or not all(map(each.fits, values)) for each in ranges):
            faults.append(f"{name}: expected {ranges[0].expected}, found {found}")
    if faults or further:
        raise SettingsError("; ".join([*faults, *further]))
