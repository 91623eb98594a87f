"""`seqserve models` and `seqserve keys`; the models of the other commands."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from app import bundle as bundles
from app.bundle import Bundle
from app.commands.console import print_error, print_row
from app.errors import BundleError, SettingsError, UnknownModel


def models(store: Path) -> None:
    """List the models of the store, damaged ones with the reason.

    Args:
        store: Folder of published bundles.
    """
    columns: dict[str, Callable[[Bundle], str]] = {
        "name": lambda bundle: bundle.manifest.model,
        "version": lambda bundle: bundle.manifest.version,
        "family": lambda bundle: bundle.manifest.family,
        "parameters": lambda bundle: f"{bundle.manifest.parameters:,}",
        "served": lambda bundle: bundle.manifest.served,
        "test": _headline,
        "bytes": lambda bundle: f"{sum(entry.bytes for entry in bundle.manifest.files.values()):,}",
    }
    rows, damaged = [list(columns)], []
    for name in bundles.models(store):
        try:
            bundle = current_bundle(store, name)
        except BundleError as error:
            damaged.append(f"{name}  damaged: {error}")
        else:
            rows.append([cell(bundle) for cell in columns.values()])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print_row(row, widths)
    print(*damaged, sep="\n", end="\n" if damaged else "")


def keys(
    action: tyro.conf.Positional[Literal["new"]],
    name: tyro.conf.Positional[str],
    file: Path | None,
    scope: Literal["predict", "admin"] = "predict",
    expires: str | None = None,
) -> None:
    """Create an API key and print it once: the file stores only its hash.

    Args:
        action: The action.
        name: Name of the client, for the log and the rate limit.
        file: Key file, which the server reads from SEQSERVE_API_KEYS_FILE; created if missing.
        scope: predict, or admin to read /metrics and activate versions too.
        expires: Date or time (ISO 8601) at which the key expires; by default never.
    """
    from app.api.http.keys import create, moment

    if file is None:
        raise SettingsError(f"keys {action}: expected SEQSERVE_API_KEYS_FILE or --file, found neither")
    try:
        until = moment(expires) if expires else None
    except ValueError as error:
        raise SettingsError(f"--expires: expected a date or time in ISO 8601, found {expires!r}") from error
    print(create(file, name, scope, until))


def open_predictor(store: Path, family: str, model: str | None, threads: int) -> Any:
    """Load the predictor of the named model, or of the family's first."""
    from app.runtime.loading import load_predictor

    names = bundles.models(store)
    if model is not None and model not in names:
        raise UnknownModel(f"{model}: no such model; available: {', '.join(names) or 'none'}")
    bundle = current_bundle(store, model) if model else _first(store, names, family)
    if bundle.manifest.family != family:
        raise UnknownModel(f"{model}: expected a {family} model, found one of {bundle.manifest.family}")
    return load_predictor(bundle, threads=threads)


def _first(store: Path, names: Sequence[str], family: str) -> Bundle:
    """Return the first bundle of the family; damaged bundles are reported and skipped."""
    for name in names:
        try:
            bundle = current_bundle(store, name)
        except BundleError as error:
            print_error(f"{name}: damaged: {error}")
        else:
            if bundle.manifest.family == family:
                return bundle
    raise UnknownModel(f"{store}: expected a {family} model, found none")


def current_bundle(store: Path, model: str) -> Bundle:
    """Read the bundle of a model that its CURRENT names."""
    return bundles.read(store / model / bundles.current(store, model))


def _headline(bundle: Bundle) -> str:
    from app.runtime.families import FAMILIES

    family, metrics = FAMILIES.get(bundle.manifest.family), bundle.manifest.metrics
    headline = family and family.headline(metrics)
    return f"{headline.name} {headline.text(metrics)}" if headline else "-"
