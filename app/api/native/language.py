"""POST /next-word and POST /perplexity."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse

from app.api.http.bodies import PROBLEMS, Deadline, json_route
from app.api.http.fan_out import all_answers
from app.api.http.state import CatalogueOf
from app.api.native.schemas import NextWord, NextWordAnswer, Perplexity, PerplexityAnswer, Score, TokenScore
from app.errors import InvalidField
from app.runtime import scores as scoring
from app.runtime.families import language_model as runtime
from app.runtime.registry import Served

FAMILY: Final = "language_model"
NEXT_WORD_BYTES: Final = 64 * 1024
PIECE: Final = 256  # token scores encoded at once: about a millisecond


def routes(max_body_bytes: int) -> APIRouter:
    """The language model's routes; `max_body_bytes` is for /perplexity."""
    router = APIRouter(tags=["language model"], responses=PROBLEMS)
    router.add_api_route(
        "/next-word",
        next_word,
        methods=["POST"],
        response_model=NextWordAnswer,
        route_class_override=json_route(NEXT_WORD_BYTES),
    )
    router.add_api_route(
        "/perplexity",
        perplexity,
        methods=["POST"],
        response_model=PerplexityAnswer,
        route_class_override=json_route(max_body_bytes),
    )
    return router


async def next_word(body: NextWord, catalogue: CatalogueOf, deadline: Deadline) -> Response:
    """Suggest how a text may go on: the likeliest next words, or the rest of a word being typed."""
    served = catalogue.get(body.model, FAMILY)
    payload = runtime.Suggest(body.text, body.top_k, body.words, body.complete)
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


async def perplexity(body: Perplexity, catalogue: CatalogueOf, deadline: Deadline) -> Response:
    """Score a text, or several: perplexity, cross-entropy, and on request what each token was worth."""
    served = catalogue.get(body.model, FAMILY)
    texts = {f"texts.{place}": text for place, text in enumerate(body.texts)} or {"text": body.text}
    asks = [
        partial(_scored, served, runtime.Score(text, body.mode, body.per_token, body.alternatives), deadline, field)
        for field, text in texts.items()
    ]
    pieces = encoded(served, await all_answers(asks, deadline))
    if body.per_token:
        return StreamingResponse(pieces, media_type="application/json")  # encoded in a worker thread
    return Response(b"".join(pieces), media_type="application/json")


async def _scored(served: Served, payload: runtime.Score, deadline: float, field: str) -> scoring.TextScore:
    """The score of the text that is the request's `field`."""
    try:
        score: scoring.TextScore = await served.answer(payload, deadline=deadline)
    except InvalidField as error:
        raise InvalidField(field, error.message) from None
    return score


def encoded(served: Served, scores: Sequence[scoring.TextScore]) -> Iterator[bytes]:
    """A PerplexityAnswer as JSON, in pieces so small that whoever encodes them lets others run in between."""
    yield b'{"model":%b,"version":%b,"results":[' % (to_json(served.name), to_json(served.version))
    for place, score in enumerate(scores):
        yield b"," if place else b""
        yield from _encoded_score(score)
    yield b'],"corpus":%b}' % _json(_score(scoring.pooled(scores)))


def _encoded_score(score: scoring.TextScore) -> Iterator[bytes]:
    figures = _json(_score(score))
    if score.token_scores is None:
        yield figures
        return
    yield figures.removesuffix(b"null}") + b"["
    for start in range(0, len(score.token_scores), PIECE):
        rows = _json([_token_score(one) for one in score.token_scores[start : start + PIECE]])
        yield (b"," if start else b"") + rows[1:-1]
    yield b"]}"


def _score(score: scoring.TextScore) -> Score:
    """All but the tokens' scores."""
    return {
        "perplexity": score.perplexity,
        "perplexity_excluding_unknown": score.perplexity_excluding_unknown,
        "tokens": score.tokens,
        "sentences": score.sentences,
        "unknown_tokens": score.unknown_tokens,
        "characters": score.characters,
        "log_likelihood": score.log_likelihood,
        "cross_entropy": score.cross_entropy,
        "bits_per_character": score.bits_per_character,
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
    """NaN becomes null."""
    return to_json(value, inf_nan_mode="null")
