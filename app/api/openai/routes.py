"""Routes of OpenAI's APIs; all of them exist below /models/{model} too, for one of several models."""

import re
from http import HTTPStatus
from typing import Any, Final

from starlette.routing import BaseRoute

from app.api.http import costs
from app.api.http.bodies import JsonBody
from app.api.http.dialect import BodyLimits, Dialect
from app.api.http.endpoints import STATUSES, Endpoint
from app.api.http.streaming import EVENTS
from app.api.http.uploads import BASE64
from app.api.openai import chat, completions, models, tokenization
from app.api.openai.errors import ERRORS
from app.api.openai.schemas import ChatAnswer, CompletionAnswer, DetokenizeAnswer, TokenizeAnswer

MAX_IDS: Final = 2**19  # of a request: a corpus as one prompt
STREAMED: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {EVENTS: {}}}}


def routes(limits: BodyLimits) -> list[BaseRoute]:
    """Return the endpoints, without and with a model in the path."""
    return [*_routes(limits, ""), *_routes(limits, "/models/{model}")]


def _routes(limits: BodyLimits, prefix: str) -> list[Endpoint]:
    parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "title": "Model"}}
    options: dict[str, Any] = {
        "scope": "predict",
        "tags": ["OpenAI"],
        "openapi_extra": {"parameters": [parameter]} if prefix else {},
    }
    errors = ERRORS.documented(*STATUSES)
    of_model = ERRORS.documented(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)
    images = JsonBody(int(limits.uploads * BASE64), cost=chat.cost, bulk=False)
    return [
        Endpoint(f"{prefix}/v1/models", models.list_models, responses=of_model, **options),
        Endpoint(f"{prefix}/v1/models/{{name}}", models.retrieve_model, responses=of_model, **options),
        Endpoint(
            f"{prefix}/v1/completions",
            completions.completions,
            body=JsonBody(limits.texts, cost=completions.cost, max_values=MAX_IDS),
            response_model=CompletionAnswer,
            responses=errors | STREAMED,
            **options,
        ),
        Endpoint(
            f"{prefix}/v1/chat/completions",
            chat.chat,
            body=images,
            response_model=ChatAnswer,
            responses=errors | STREAMED,
            **options,
        ),
        Endpoint(f"{prefix}/tokenizer_info", tokenization.tokenizer_info, responses=of_model, **options),
        Endpoint(
            f"{prefix}/tokenize",
            tokenization.tokenize,
            body=JsonBody(limits.texts, cost=costs.of_text),
            response_model=TokenizeAnswer,
            responses=errors,
            **options,
        ),
        Endpoint(
            f"{prefix}/detokenize",
            tokenization.detokenize,
            body=JsonBody(limits.texts, cost=tokenization.cost, max_values=MAX_IDS),
            response_model=DetokenizeAnswer,
            responses=errors,
            **options,
        ),
    ]


DIALECT: Final = Dialect(
    routes, re.compile(r"\S+ (/models/[^/]+)?/(v1(/.*)?|tokenize|detokenize|tokenizer_info)", re.DOTALL), ERRORS
)
