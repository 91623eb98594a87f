"""Loading of a bundle's predictor, verified by the recorded answers of its probe."""

import ctypes
import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.bundle import Bundle
from app.errors import BundleError
from app.runtime.families import FAMILIES, Family
from app.runtime.predictor import BundlePredictor, ObserveCache, Resources, ignore
from app.text import TOKENIZERS, Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A version that is loaded, verified and warm, but serves no requests yet. Needs no closing."""

    bundle: Bundle
    predictor: BundlePredictor[Any, Any, Any]


def load_predictor(
    bundle: Bundle,
    *,
    threads: int = 1,
    cache_bytes: int = 0,
    observe_cache: ObserveCache = ignore,
    families: Mapping[str, Family] = FAMILIES,
    tokenizers: Mapping[str, type[Tokenizer]] = TOKENIZERS,
) -> Any:
    """Open the predictor of the bundle's family and verify it by the probe.

    If the int8 graphs do not reproduce the recorded answers (processors without an exact 8-bit product saturate), the
    fp32 graphs serve. Raise BundleError if those fail too.
    """
    family = families.get(bundle.manifest.family)
    if family is None:
        expected, found = ", ".join(families), bundle.manifest.family
        raise BundleError(f"{bundle.folder}: family: expected one of {expected}, found {found!r}")
    resources = Resources(threads, cache_bytes, tokenizers, observe_cache)
    open_graphs = partial(family.predictor.open, bundle, resources=resources)
    try:
        predictor = open_graphs(bundle.manifest.served)
        difference = _difference(bundle, predictor)
        if difference and predictor.precision == "int8":
            log.warning("%s; falling back to fp32 on this machine", difference)
            predictor = open_graphs("fp32")
            difference = _difference(bundle, predictor)
    except BundleError:
        raise
    except Exception as error:  # checksums verify the content, not that this version of the code can use it
        raise BundleError(f"{bundle.folder}: can't be used by this version: {error!r}") from error
    if difference:
        raise BundleError(difference)
    return predictor


def _difference(bundle: Bundle, predictor: BundlePredictor[Any, Any, Any]) -> str | None:
    """Return a description of the difference between the probe's answer and the recorded one, None if they agree."""
    probe = bundle.json("probe.json")
    expected = probe["answers"][predictor.precision]
    found = predictor.probe(probe["payload"])
    equal = 0 < len(found) == len(expected) and all(
        text == expected_text and abs(value - expected_value) <= predictor.PROBE_TOLERANCE
        for (text, value), (expected_text, expected_value) in zip(found, expected, strict=True)
    )
    if equal:
        return None
    return f"{bundle.folder}: {predictor.precision}: probe: expected {expected}, found {found}"


def freeze_heap() -> None:
    """Collect garbage, then exempt the rest from collection: the loaded models take 30 ms to traverse."""
    gc.collect()
    gc.freeze()


def release_memory() -> None:
    """Return freed memory to the system: after a few exchanges glibc would keep as much as another version takes."""
    gc.unfreeze()
    freeze_heap()  # a vocabulary is in a reference cycle
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc alone has it, and needs it
        libc.malloc_trim(0)
