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
    faults = [
        f"{name}: expected {expected}, found {getattr(config, name)}"
        for expected, fits, names in ranges
        for name in names
        if not _all_fit(getattr(config, name), fits)
    ]
    if faults or further:
        raise SettingsError("; ".join([*faults, *further]))


def _all_fit(value: Any, fits: Callable[[Any], bool]) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(map(fits, values))
