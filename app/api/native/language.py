"""POST /next-word and POST /perplexity."""

from collections.abc import Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Final

from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from app.api.http import costs
from app.api.http.bodies import JsonBody
from app.api.http.context import RegistryOf
from app.api.http.endpoints import PROBLEMS, Deadline, Endpoint
from app.api.http.fan_out import all_answers
from app.api.native.schemas import NextWord, NextWordAnswer, Perplexity, PerplexityAnswer, Score, TokenScore
from app.runtime import scores as scoring
from app.runtime.families import language_model as runtime
from app.runtime.registry import Served

TAGS: Final[list[str | Enum]] = ["language model"]
FAMILY: Final = "language_model"
NEXT_WORD_BYTES: Final = 64 * 1024
PIECE: Final = 256  # token scores encoded at once: about a millisecond


def routes(max_body_bytes: int) -> list[BaseRoute]:
    """Return the language model's endpoints; `max_body_bytes` limits the body of /perplexity."""
    return [
        Endpoint(
            "/next-word",
            next_word,
            scope="predict",
            body=JsonBody(NEXT_WORD_BYTES, cost=costs.of_text),
            response_model=NextWordAnswer,
            responses=PROBLEMS,
            tags=TAGS,
        ),
        Endpoint(
            "/perplexity",
            perplexity,
            scope="predict",
            body=JsonBody(max_body_bytes, cost=costs.of_text),
            response_model=PerplexityAnswer,
            responses=PROBLEMS,
            tags=TAGS,
        ),
    ]


async def next_word(body: NextWord, registry: RegistryOf, deadline: Deadline) -> Response:
    """Suggest how a text may go on: the likeliest next words, or the rest of a word being typed."""
    payload = runtime.Suggest(body.text, body.top_k, body.words, body.complete)
    with registry.get(body.model, FAMILY) as served:
        found: runtime.Suggestions = await served.answer(payload, deadline=deadline)
    answer: NextWordAnswer = {
        "model": served.name,
        "version": served.version,
        "suggestions": [
            {"text": one.text, "probability": one.probability, "log_probability": one.log_probability}
            for one in found.suggestions
        ],
        "context_tokens": found.context_tokens,
        "unknown_words": found.unknown_words,
        "cached_tokens": found.cached_tokens,
    }
    return Response(_json(answer), media_type="application/json")


async def perplexity(body: Perplexity, registry: RegistryOf, deadline: Deadline) -> Response:
    """Score a text, or several: perplexity, cross-entropy, and on request what each token was worth."""
    texts = body.texts if body.text is None else [body.text]
    with registry.get(body.model, FAMILY) as served:
        submits = [
            partial(served.answer, runtime.Score(text, body.mode, body.per_token, body.alternatives), deadline=deadline)
            for text in texts
        ]
        pieces = encoded(served, await all_answers(submits, deadline))
    if body.per_token:
        return StreamingResponse(pieces, media_type="application/json")  # encoded in a worker thread
    return Response(b"".join(pieces), media_type="application/json")


def encoded(served: Served, scores: Sequence[scoring.TextScore]) -> Iterator[bytes]:
    """Encode a PerplexityAnswer as JSON, in pieces small enough for other threads to run in between."""
    yield b'{"model":%b,"version":%b,"results":[' % (to_json(served.name), to_json(served.version))
    for index, score in enumerate(scores):
        yield b"," if index else b""
        yield from _encoded_score(score)
    yield b'],"corpus":%b}' % _json(_score(scoring.pooled(scores)))


def _encoded_score(score: scoring.TextScore) -> Iterator[bytes]:
    fields = _json(_score(score))
    if score.token_scores is None:
        yield fields
        return
    yield fields.removesuffix(b"null}") + b"["
    for start in range(0, len(score.token_scores), PIECE):
        rows = _json([_token_score(one) for one in score.token_scores[start : start + PIECE]])
        yield (b"," if start else b"") + rows[1:-1]
    yield b"]}"


def _score(score: scoring.TextScore) -> Score:
    """Convert all but the tokens' scores."""
    return {
        "perplexity": score.perplexity,
        "perplexity_excluding_unknown": score.perplexity_excluding_unknown,
        "tokens": score.tokens,
        "sentences": score.sentences,
        "unknown_tokens": score.unknown_tokens,
        "characters": score.characters,
        "bytes": score.bytes,
        "words": score.words,
        "log_likelihood": score.log_likelihood,
        "cross_entropy": score.cross_entropy,
        "bits_per_character": score.bits_per_character,
        "bits_per_byte": score.bits_per_byte,
        "word_perplexity": score.word_perplexity,
        "token_scores": None,
    }


def _token_score(score: scoring.TokenScore) -> TokenScore:
    return {
        "token": score.token,
        "start": score.start,
        "end": score.end,
        "log_probability": score.log_probability,
        "rank": score.rank,
        "unknown": score.unknown,
        "alternatives": [{"token": token, "log_probability": value} for token, value in score.alternatives],
    }


def _json(value: NextWordAnswer | Score | list[TokenScore]) -> bytes:
    """Encode as JSON, NaN as null."""
    return to_json(value, inf_nan_mode="null")
