"""The routes of each peer: the request fields used by the benchmark, validated by FastAPI."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

from fastapi import FastAPI, UploadFile
from pydantic import BaseModel, Field

Kind: TypeAlias = Literal["next-word", "perplexity", "digits", "captions"]  # also the route
Ask: TypeAlias = Callable[[Kind, Any], Awaitable[dict[str, Any]]]


class NextWord(BaseModel):
    """POST /next-word, for single words."""

    text: str
    top_k: int = Field(5, ge=1, le=50)
    words: Literal[1] = 1
    complete: bool = False
    model: str | None = None


class Perplexity(BaseModel):
    """POST /perplexity, for one document."""

    text: str = Field(min_length=1)
    mode: Literal["document"] = "document"
    per_token: Literal[False] = False
    model: str | None = None


def application(ask: Ask) -> FastAPI:
    """Return the four routes; `ask` receives a kind and its payload: the fields of the body, or image bytes."""
    app = FastAPI()

    @app.post("/next-word")
    async def next_word(body: NextWord) -> dict[str, Any]:
        return await ask("next-word", body.model_dump())

    @app.post("/perplexity")
    async def perplexity(body: Perplexity) -> dict[str, Any]:
        return await ask("perplexity", body.model_dump())

    @app.post("/digits")
    async def digits(image: UploadFile) -> dict[str, Any]:
        return await ask("digits", await image.read())

    @app.post("/captions")
    async def captions(image: UploadFile) -> dict[str, Any]:
        return await ask("captions", await image.read())

    return app
