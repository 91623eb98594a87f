"""POST /next-word and POST /perplexity."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum
from functools import lru_cache, partial
from typing import Final

from pydantic import TypeAdapter
from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from app.api.http import costs
from app.api.http.bodies import JsonBody
from app.api.http.context import RegistryOf
from app.api.http.endpoints import PROBLEMS, Deadline, Endpoint
from app.api.http.fan_out import all_answers
from app.api.http.streaming import json_array
from app.api.native.schemas import NextWord, NextWordAnswer, Perplexity, PerplexityAnswer
from app.errors import TooLarge
from app.runtime.families.language_model import HISTORY_BYTES, Suggestions
from app.runtime.registry import Served
from app.runtime.scores import TextScore, TokenScore, pooled

TAGS: Final[list[str | Enum]] = ["language model"]
FAMILY: Final = "language_model"
TEXT_BYTES: Final = 64 * 1024  # of UTF-8, of the text of /next-word
NEXT_WORD_BYTES: Final = TEXT_BYTES + 6 * HISTORY_BYTES  # JSON may escape a byte as \u00XX
SUGGESTIONS: Final = TypeAdapter(Suggestions)
SCORE: Final = TypeAdapter(TextScore)
TOKEN_SCORES: Final = TypeAdapter(list[TokenScore])


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
    if len(body.text) > TEXT_BYTES // 4 and (size := len(body.text.encode())) > TEXT_BYTES:
        raise TooLarge(f"text: expected at most {TEXT_BYTES} bytes of UTF-8, found {size}")
    with registry.get(body.model, FAMILY) as served:
        found: Suggestions = await served.answer(body, deadline=deadline)
    return Response(head(served.name, served.version) + SUGGESTIONS.dump_json(found)[1:], media_type="application/json")


async def perplexity(body: Perplexity, registry: RegistryOf, deadline: Deadline) -> Response:
    """Score a text, or several: perplexity, cross-entropy, and on request the score of each token."""
    payloads = [replace(body, text=text, texts=[]) for text in body.texts] or [body]
    with registry.get(body.model, FAMILY) as served:
        submits = [partial(served.answer, payload, deadline=deadline) for payload in payloads]
        pieces = encoded(served, await all_answers(submits, deadline))
    if body.per_token:
        return StreamingResponse(pieces, media_type="application/json")  # encoded in a worker thread
    return Response(b"".join(pieces), media_type="application/json")


@lru_cache
def head(model: str, version: str) -> bytes:
    """Return the start of an `Answer` as JSON, up to the fields that follow."""
    return b'{"model":%b,"version":%b,' % (to_json(model), to_json(version))


def encoded(served: Served, scores: Sequence[TextScore]) -> Iterator[bytes]:
    """Encode a PerplexityAnswer as JSON, in pieces small enough for other threads to run in between."""
    yield head(served.name, served.version) + b'"results":['
    for index, score in enumerate(scores):
        yield b"," if index else b""
        yield from _encoded_score(score)
    yield b'],"corpus":%b}' % SCORE.dump_json(pooled(scores))


def _encoded_score(score: TextScore) -> Iterator[bytes]:
    if score.token_scores is None:
        yield SCORE.dump_json(score)
        return
    yield SCORE.dump_json(score, exclude={"token_scores"})[:-1] + b',"token_scores":'
    yield from json_array(score.token_scores, TOKEN_SCORES.dump_json)
    yield b"}"
