"""Reading of a version and loading of its predictor, verified by the recorded answers of its probes.

probe.json holds `{"payload": ..., "answers": {"int8": ..., "fp32": ...}}`, and further objects of this form in the list
`further`.
"""

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, UnknownModel, UnknownVersion
from app.runtime.families import FAMILIES, Family
from app.runtime.predictor import BundlePredictor, ObserveCache, Resources, ignore
from app.text import TOKENIZERS, Tokenizer
from app.text.blocked_words import BLOCKED_WORDS

CARD: Final = "README.md"
PROBE: Final = "probe.json"
PROBE_BYTES: Final = 1 << 16  # of probe.json: some seconds of work at most
MAX_PROBES: Final = 8
MAX_PROBE_NUMBER: Final = 100  # of a payload, such as the number of words to suggest
PNG: Final = b"\x89PNG\r\n\x1a\n"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A version that is loaded, verified and warm, but serves no requests yet. Needs no closing."""

    bundle: Bundle
    predictor: BundlePredictor[Any, Any, Any]


def read_version(store: Path, name: str, version: str, family: str | None) -> Bundle:
    """Read and verify a version that may replace one of `family`, None if the model is not served.

    Raise UnknownModel or UnknownVersion if the store lacks it, BundleError if it is invalid or of another family.
    """
    known = bundles.models(store)
    if family is None and name not in known:
        raise UnknownModel(f"{name[:80]!r}: no such model; available: {', '.join(known) or 'none'}")
    versions = bundles.versions(store, name) if name in known else []
    if version not in versions:
        raise UnknownVersion(f"{name}: no version {version[:80]!r}; available: {', '.join(versions) or 'none'}")
    bundle = bundles.read(store / name / version)
    if family not in (None, found := bundle.manifest.family):
        raise BundleError(f"{bundle.folder}: family: expected {family}, as served, found {found}")
    return bundle


def load_predictor(
    bundle: Bundle,
    *,
    threads: int = 1,
    cache_bytes: int = 0,
    blocked: Set[str] = BLOCKED_WORDS,
    observe_cache: ObserveCache = ignore,
    families: Mapping[str, Family] = FAMILIES,
    tokenizers: Mapping[str, type[Tokenizer]] = TOKENIZERS,
) -> Any:
    """Open the predictor of the bundle's family and verify it by the probes; check the other files too.

    If the int8 graphs do not reproduce the recorded answers (processors without an exact 8-bit product saturate), the
    fp32 graphs serve. Raise BundleError if those fail too.
    """
    family = families.get(bundle.manifest.family)
    if family is None:
        expected, found = ", ".join(families), bundle.manifest.family
        raise BundleError(f"{bundle.folder}: family: expected one of {expected}, found {found!r}")
    resources = Resources(threads, cache_bytes, tokenizers, observe_cache, blocked)
    open_graphs = partial(family.predictor.open, bundle, resources=resources)
    try:
        _check_card(bundle)
        probes = _probes(bundle)
        predictor = open_graphs(bundle.manifest.served)
        difference = _difference(bundle, predictor, probes)
        if difference and predictor.precision == "int8":
            log.warning("%s; falling back to fp32 on this machine", difference)
            predictor = open_graphs("fp32")
            difference = _difference(bundle, predictor, probes)
    except BundleError:
        raise
    except Exception as error:  # checksums verify the content, not that this version of the code can use it
        raise BundleError(f"{bundle.folder}: can't be used by this version: {error!r}") from error
    if difference:
        raise BundleError(difference)
    return predictor


def _check_card(bundle: Bundle) -> None:
    """Raise BundleError for a model card or an image of it that can't be shown."""
    for name in bundle.manifest.files:
        if name == CARD:
            bundle.text(name)
        elif name.endswith(".png"):
            with bundle.path(name).open("rb") as stream:
                if (found := stream.read(len(PNG))) != PNG:
                    raise BundleError(f"{bundle.path(name)}: expected a PNG image, found {found!r}")


def _probes(bundle: Bundle) -> list[Any]:
    """Return the probes. Raise BundleError if they are too large or too many."""
    path = bundle.path(PROBE)
    if (size := bundle.manifest.files[PROBE].bytes) > PROBE_BYTES:
        raise BundleError(f"{path}: expected at most {PROBE_BYTES} bytes, found {size}")
    found = bundle.json(PROBE)
    if not isinstance(found, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(found).__name__}")
    probes = [found, *found.get("further", [])]
    if len(probes) > MAX_PROBES:
        raise BundleError(f"{path}: expected at most {MAX_PROBES} probes, found {len(probes)}")
    return probes


def _difference(
    bundle: Bundle, predictor: BundlePredictor[Any, Any, Any], probes: Sequence[Mapping[str, Any]]
) -> str | None:
    """Return a description of a difference between an answer and the recorded one, None if all agree."""
    for probe in probes:
        payload, expected = probe["payload"], probe["answers"][predictor.precision]
        for name, value in payload.items():
            if isinstance(value, int | float) and not 0 <= value <= MAX_PROBE_NUMBER:
                raise BundleError(
                    f"{bundle.path(PROBE)}: {name}: expected 0 to {MAX_PROBE_NUMBER}, found {str(value)[:80]}"
                )
        found = predictor.probe(payload)
        equal = 0 < len(found) == len(expected) and all(
            text == expected_text and abs(value - expected_value) <= predictor.PROBE_TOLERANCE
            for (text, value), (expected_text, expected_value) in zip(found, expected, strict=True)
        )
        if not equal:
            return f"{bundle.folder}: {predictor.precision}: probe: expected {expected}, found {found}"
    return None
