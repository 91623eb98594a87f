"""Inference engines of the peers: eager torch on the published weights, or the published graphs.

An engine answers a batch of one kind's payloads: a dict of the request's fields, or an image's bytes. The answers are
those of the contract. The graphs answer by our predictors, without the cache of states, which is our server's part.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from app import bundle as bundles
from app.bundle import Bundle
from app.manifest import FamilyName
from app.runtime.families.captions import Describe, Description
from app.runtime.families.digits import Classification, Classify
from app.runtime.families.language_model import Suggest, Suggestions
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from app.runtime.scores import TextScore
from app.runtime.scoring import Score
from tests.bench.serving.peers.routes import Kind

Answers: TypeAlias = Callable[[Sequence[Any]], list[dict[str, Any]]]

STORE: Final = Path("models_store")
FAMILIES: Final[dict[Kind, FamilyName]] = {
    "next-word": "language_model",
    "perplexity": "language_model",
    "digits": "digits",
    "captions": "captions",
}
BATCH: Final[dict[Kind, int]] = {
    "next-word": 32,
    "perplexity": 16,
    "digits": 32,
    "captions": 8,
}  # maximum batch size of a peer
WAIT_S: Final = 0.002  # maximum wait of a peer to fill a batch
WORKERS: Final = int(os.environ.get("BENCH_WORKERS", "1"))  # inference processes of a peer with batching


def opened(kind: Kind) -> Answers:
    """Return the engine of `kind`, selected by BENCH_ENGINE (torch or int8) and BENCH_THREADS."""
    return ENGINES[os.environ["BENCH_ENGINE"]](kind, int(os.environ["BENCH_THREADS"]))


def bundle_of(family: FamilyName) -> Bundle:
    """Return the current version of the family's first model in STORE."""
    found = (bundles.read(STORE / name / bundles.current(STORE, name)) for name in bundles.models(STORE))
    return next(bundle for bundle in found if bundle.manifest.family == family)


def score_json(score: TextScore) -> dict[str, Any]:
    """Format the answer as the API does."""
    fields = (
        "perplexity",
        "perplexity_excluding_unknown",
        "tokens",
        "sentences",
        "unknown_tokens",
        "characters",
        "log_likelihood",
        "cross_entropy",
        "bits_per_character",
    )
    return {field: getattr(score, field) for field in fields} | {"token_scores": None}


def _graphs(kind: Kind, threads: int) -> Answers:
    bundle, predictor = _published(FAMILIES[kind], threads)
    return _answers(kind, bundle, predictor)


def _torch(kind: Kind, threads: int) -> Answers:
    from tests.bench.serving.peers import eager  # imports torch only where it is used

    bundle, model = _eager(FAMILIES[kind], threads)
    if isinstance(model, eager.EagerLanguageModel):
        return model.suggest if kind == "next-word" else model.score
    return _answers(kind, bundle, model)


ENGINES: Final[dict[str, Callable[[Kind, int], Answers]]] = {"torch": _torch, "int8": _graphs}


@cache
def _published(family: FamilyName, threads: int) -> tuple[Bundle, Any]:
    bundle = bundle_of(family)
    return bundle, load_predictor(bundle, threads=threads, cache_bytes=0)


@cache
def _eager(family: FamilyName, threads: int) -> tuple[Bundle, Any]:
    from tests.bench.serving.peers import eager

    bundle = bundle_of(family)
    return bundle, eager.MODELS[family](bundle, threads)


def _answers(kind: Kind, bundle: Bundle, predictor: Any) -> Answers:
    named = {"model": bundle.manifest.model, "version": bundle.manifest.version}

    def answers(payloads: Sequence[Any]) -> list[dict[str, Any]]:
        examples = [predictor.prepare(PAYLOADS[kind](payload)) for payload in payloads]
        return [named | TO_JSON[kind](found) for found in answer_all(predictor, examples)]

    return answers


def _suggestions(found: Suggestions) -> dict[str, Any]:
    return {
        "suggestions": [
            {"text": one.text, "probability": one.probability, "log_probability": one.log_probability}
            for one in found.suggestions
        ],
        "context_tokens": found.context_tokens,
        "unknown_words": found.unknown_words,
        "cached_tokens": found.cached_tokens,
    }


def _scored(found: TextScore) -> dict[str, Any]:
    score = score_json(found)
    return {"results": [score], "corpus": score}


def _digit(found: Classification) -> dict[str, Any]:
    fields = ("digit", "confidence", "probabilities", "rejected", "reason")
    return {"results": [{field: getattr(found, field) for field in fields}]}


def _caption(found: Description) -> dict[str, Any]:
    caption: dict[str, Any] = {"caption": found.caption, "log_probability": found.log_probability, "alternatives": []}
    return {"results": [caption]}


PAYLOADS: Final[dict[Kind, Callable[[Any], Any]]] = {
    "next-word": lambda asked: Suggest(asked["text"], asked["top_k"], complete=asked["complete"]),
    "perplexity": lambda asked: Score(asked["text"]),
    "digits": Classify,
    "captions": Describe,
}
TO_JSON: Final[dict[Kind, Callable[[Any], dict[str, Any]]]] = {
    "next-word": _suggestions,
    "perplexity": _scored,
    "digits": _digit,
    "captions": _caption,
}
