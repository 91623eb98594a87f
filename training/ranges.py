"""What the fields of a recipe's configuration may be, and one error that tells of all that are not."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from app.errors import SettingsError

Range: TypeAlias = tuple[str, Callable[[Any], bool], tuple[str, ...]]
"""What is expected, whether a value is that (no comparison holds for NaN), and of which fields."""


def require_ranges(config: Any, ranges: Sequence[Range], *further: str) -> None:
    """Raise SettingsError that names every field out of its range, and the `further` faults.

    Of a field that is a tuple each value must be in range, and there must be one.
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
