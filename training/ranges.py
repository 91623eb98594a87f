"""Range checks of a recipe's configuration, with one error for all fields out of range."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from app.errors import SettingsError

Range: TypeAlias = tuple[str, Callable[[Any], bool], tuple[str, ...]]
"""The expectation in words, its predicate (false for NaN, as all comparisons are), and the fields it holds for."""


def require_ranges(config: Any, ranges: Sequence[Range], *further: str) -> None:
    """Raise SettingsError that names every field out of its range, and lists the `further` faults.

    A tuple must not be empty, and each of its values must be in range.
    """
    faults = []
    for expected, fits, names in ranges:
        for name in names:
            found = getattr(config, name)
            values = found if isinstance(found, tuple) else (found,)
            if not values or not all(map(fits, values)):
                faults.append(f"{name}: expected {expected}, found {found}")
    if faults or further:
        raise SettingsError("; ".join([*faults, *further]))
