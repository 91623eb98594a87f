"""Manifests of tiny bundles."""

from typing import Any

from app.manifest import FORMAT, CorpusEntry, Manifest


def tiny_manifest(family: str, **fields: Any) -> Manifest:
    """Return the manifest of version `1` of the model `tiny`, but for `fields`."""
    given: dict[str, Any] = {
        "format": FORMAT,
        "family": family,
        "model": "tiny",
        "version": "1",
        "created": "2026-01-02T03:04:05Z",
        "commit": None,
        "config": {},
        "normalisation": None,
        "vocabulary_sha256": None,
        "corpus": CorpusEntry(name="none", terms="none", sha256={}),
        "metrics": {},
        "parameters": 1,
        "served": "int8",
        "files": {},
    }
    return Manifest.model_validate(given | fields)
