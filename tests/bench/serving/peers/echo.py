"""The upper limit set by HTTP and JSON: FastAPI validates the same request and returns a constant answer.

uvicorn tests.bench.serving.peers.echo:app
"""

from fastapi import FastAPI
from pydantic import BaseModel

from tests.bench.serving.peers.routes import NextWord


class Suggestion(BaseModel):
    """A suggestion."""

    text: str
    probability: float
    log_probability: float


class NextWordAnswer(BaseModel):
    """The answer of POST /next-word."""

    model: str
    version: str
    suggestions: list[Suggestion]
    context_tokens: int
    unknown_words: list[str]
    cached_tokens: int


app = FastAPI()


@app.post("/next-word")
async def next_word(body: NextWord) -> NextWordAnswer:
    """Return `top_k` constant suggestions."""
    return NextWordAnswer(
        model="echo",
        version="1",
        suggestions=[Suggestion(text="a", probability=0.1, log_probability=-2.3)] * body.top_k,
        context_tokens=len(body.text),
        unknown_words=[],
        cached_tokens=0,
    )
