"""POST /next-word and POST /perplexity."""

import asyncio
import math
import time
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from app.api.http.fan_out import FAN_OUT
from app.api.http.streaming import PIECE
from app.api.native.language import TEXT_BYTES
from app.api.native.schemas import NextWord, NextWordAnswer, PerplexityAnswer
from app.errors import InvalidField, Overloaded
from app.runtime.families.language_model import HISTORY_BYTES
from app.runtime.scores import Alternative, TextScore
from app.runtime.scoring import Score
from tests.api.conftest import BoundedQueue, FakeServed, connect, plausible, service

pytestmark = pytest.mark.anyio


async def test_next_word_passes_its_fields_to_the_model_and_returns_the_answer(served: FakeServed) -> None:
    asked = []

    async def answering(payload: Any, deadline: float | None) -> Any:
        asked.append(payload)
        return await plausible(payload, deadline)

    served.answering = answering
    async with connect(service(served)) as client:
        body = {"text": "shares of\x00 the comp", "top_k": 7, "words": 3, "complete": True, "model": "ptb"}
        response = await client.post("/next-word", json=body)
        await client.post("/next-word", json={"text": "", "model": None})
    assert asked == [NextWord("shares of\x00 the comp", 7, 3, True, model="ptb"), NextWord("", 5, 1, False)]
    assert response.json() == {
        "model": "ptb",
        "version": "2",
        "suggestions": [{"text": "the", "probability": 0.5, "log_probability": -0.693}],
        "context_tokens": 5,
        "unknown_words": ["zyx"],
        "cached_tokens": 1,
    }
    TypeAdapter(NextWordAnswer).validate_json(response.content, strict=True, extra="forbid")


async def test_next_word_takes_a_history(served: FakeServed) -> None:
    asked = []

    async def answering(payload: Any, deadline: float | None) -> Any:
        asked.append((payload.history, payload.adapt))
        return await plausible(payload, deadline)

    served.answering = answering
    largest = "\u00e9" * (HISTORY_BYTES // 2)
    async with connect(service(served)) as client:
        for fields in (
            {"history": "a"},
            {"history": ["a", "b"], "adapt": None},
            {"adapt": False},
            {"history": largest},
        ):
            assert (await client.post("/next-word", json={"text": "a", **fields})).status_code == 200
        for history in (largest + "a", [largest, "a"], [1], None):
            response = await client.post("/next-word", json={"text": "a", "history": history})
            assert response.status_code == 422
            assert response.json()["errors"][0]["field"].startswith("history")
        response = await client.post("/next-word", json={"text": "a" * (TEXT_BYTES + 1)})
    assert asked == [("a", None), (["a", "b"], None), ([], False), (largest, None)]
    assert response.status_code == 413
    assert response.json()["detail"] == "text: expected at most 65536 bytes of UTF-8, found 65537"


async def test_perplexity_scores_a_text(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"text": "one two three"})
    expected = {
        "perplexity": pytest.approx(math.exp(2)),
        "perplexity_excluding_unknown": pytest.approx(math.exp(2)),
        "perplexity_open": pytest.approx(math.exp(2)),
        "tokens": 4,
        "sentences": 1,
        "unknown_tokens": 0,
        "characters": 13,
        "bytes": 13,
        "words": 3,
        "log_likelihood": -8.0,
        "cross_entropy": pytest.approx(2 / math.log(2)),
        "bits_per_character": pytest.approx(8 / math.log(2) / 13),
        "bits_per_byte": pytest.approx(8 / math.log(2) / 13),
        "word_perplexity": pytest.approx(math.exp(8 / 3)),
        "token_scores": None,
    }
    assert response.json() == {"model": "ptb", "version": "2", "results": [expected], "corpus": expected}


async def test_perplexity_keeps_the_order_of_the_texts_and_pools_their_tokens(served: FakeServed) -> None:
    texts = ["a " * (1 + place % 7) for place in range(100)]
    async with connect(service(served)) as client:
        reported = (await client.post("/perplexity", json={"texts": texts, "mode": "sentence"})).json()
    assert [result["tokens"] for result in reported["results"]] == [2 + place % 7 for place in range(100)]
    assert reported["corpus"]["tokens"] == sum(result["tokens"] for result in reported["results"])


@pytest.mark.parametrize("tokens", [1, PIECE - 1, PIECE, 3 * PIECE + 1])
async def test_token_scores_are_complete_in_any_number_of_pieces(served: FakeServed, tokens: int) -> None:
    texts = ["w\u2028\u00e9" + " w" * (tokens - 2), "b"]
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"texts": texts, "per_token": True, "alternatives": 2})
    answer = TypeAdapter(PerplexityAnswer).validate_json(response.content, strict=True, extra="forbid")
    rows = answer.results[0].token_scores
    assert rows is not None
    assert answer.corpus.token_scores is None
    assert [row.token for row in rows] == [*texts[0].split(), "<eos>"]
    assert rows[-1].alternatives == [Alternative("the", -1.5)] * 2


async def test_an_undefined_number_is_null(served: FakeServed) -> None:
    async def unknown(payload: Any, deadline: float | None) -> TextScore:
        return TextScore(log_likelihood=-math.inf, log_likelihood_unknown=math.nan, tokens=1, sentences=1, characters=1)

    served.answering = unknown
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"text": "a"})
    assert response.json()["corpus"]["perplexity_excluding_unknown"] is None
    assert "NaN" not in response.text
    assert "Infinity" not in response.text


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/next-word", {}, "text"),
        ("/next-word", {"text": None}, "text"),
        ("/next-word", {"text": 5}, "text"),
        ("/next-word", {"text": "a", "top_k": 0}, "top_k"),
        ("/next-word", {"text": "a", "top_k": 51}, "top_k"),
        ("/next-word", {"text": "a", "top_k": "5"}, "top_k"),
        ("/next-word", {"text": "a", "top_k": True}, "top_k"),
        ("/next-word", {"text": "a", "top_k": 5.5}, "top_k"),
        ("/next-word", {"text": "a", "top_k": 10**30}, "top_k"),
        ("/next-word", {"text": "a", "words": 6}, "words"),
        ("/next-word", {"text": "a", "complete": 1}, "complete"),
        ("/next-word", {"text": "a", "model": 1}, "model"),
        ("/next-word", {"text": "a", "topk": 1}, "topk"),
        ("/next-word", [], "body"),
        ("/perplexity", {}, "text"),
        ("/perplexity", {"text": "a", "texts": ["b"]}, "texts"),
        ("/perplexity", {"texts": []}, "texts"),
        ("/perplexity", {"texts": ["a"] * 257}, "texts"),
        ("/perplexity", {"texts": "a"}, "texts"),
        ("/perplexity", {"texts": ["a", 1]}, "texts.1"),
        ("/perplexity", {"text": "a", "mode": "word"}, "mode"),
        ("/perplexity", {"text": "a", "per_token": "yes"}, "per_token"),
        ("/perplexity", {"text": "a", "alternatives": 11}, "alternatives"),
        ("/perplexity", {"text": "a", "alternatives": -1}, "alternatives"),
    ],
)
async def test_an_invalid_field_is_named(shared: FastAPI, path: str, body: Any, field: str) -> None:
    async with connect(shared) as client:
        response = await client.post(path, json=body)
    reported = response.json()
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert [error["field"] for error in reported["errors"]] == [field]
    assert reported["errors"][0]["message"].startswith("expected ")
    assert reported["errors"][0]["message"] in reported["detail"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/next-word", rb'{"text": "half \ud83d a pair"}', "text"),
        ("/next-word", rb'{"text": "a", "\ud83d": 1}', "body"),
        ("/next-word", rb'{"text": "a", "model": "\udc00"}', "model"),
        ("/perplexity", rb'{"texts": ["a", "\ud83d"]}', "texts.1"),
        ("/next-word", b'{"text": "a", "top_k": NaN}', "top_k"),
        ("/next-word", b"null", "body"),
    ],
)
async def test_unusual_json_values_are_invalid_fields(shared: FastAPI, path: str, body: bytes, field: str) -> None:
    async with connect(shared) as client:
        response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]


async def test_a_body_with_many_faults_gets_a_short_answer(served: FakeServed) -> None:
    body = {"text": "a"} | {f"{place}{'x' * 200}": "y" * 200 for place in range(100)}
    async with connect(service(served)) as client:
        response = await client.post("/next-word", json=body)
    assert response.status_code == 422
    assert len(response.content) < 10_000


@pytest.mark.parametrize(("sent", "expected"), [(None, 60), ("2.5", 2.5), ("1e9", 60)])
async def test_a_client_can_lower_the_deadline(served: FakeServed, sent: str | None, expected: float) -> None:
    deadlines: list[float] = []

    async def answering(payload: Any, deadline: float | None) -> Any:
        assert deadline is not None
        deadlines.append(deadline)
        return await plausible(payload, deadline)

    served.answering = answering
    headers = {"X-Request-Timeout": sent} if sent else {}
    async with connect(service(served, request_timeout_s=60)) as client:
        before = time.monotonic()
        await client.post("/next-word", json={"text": "a"}, headers=headers)
        await client.post("/perplexity", json={"text": "a"}, headers=headers)
    after = time.monotonic()
    assert len(deadlines) == 2
    assert all(before + expected <= deadline <= after + expected for deadline in deadlines)


async def test_a_request_submits_a_limited_number_of_texts_at_once(served: FakeServed) -> None:
    queue = BoundedQueue(256, plausible)
    served.answering = queue.answer
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"texts": ["a"] * 256})
    assert response.status_code == 200
    assert queue.most == FAN_OUT


@pytest.mark.parametrize("room", [1, 3])
async def test_many_texts_fit_any_queue(served: FakeServed, room: int) -> None:
    queue = BoundedQueue(room, plausible)
    served.answering = queue.answer
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"texts": ["a"] * 50})
    assert len(response.json()["results"]) == 50
    assert queue.most == room


async def test_a_request_rejected_midway_by_a_full_queue_waits(served: FakeServed) -> None:
    free = iter([True, False, True])

    async def answering(payload: Any, deadline: float | None) -> Any:
        if not next(free):
            raise Overloaded("others came first")
        return await plausible(payload, deadline)

    served.answering = answering
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"texts": ["a", "b"]})
    assert response.status_code == 200


async def test_a_request_that_never_enters_the_queue_is_rejected(served: FakeServed) -> None:
    served.answering = BoundedQueue(0, plausible).answer
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"texts": ["a"] * 256})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_when_one_text_fails_the_others_are_cancelled(served: FakeServed) -> None:
    cancelled = []

    async def answering(payload: Score, deadline: float | None) -> Any:
        if payload.text == "bad":
            raise InvalidField("text", "expected better")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.append(payload.text)
            raise

    served.answering = answering
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"texts": ["a", "b", "bad"]})
    assert response.status_code == 422
    assert sorted(cancelled) == ["a", "b"]


async def test_a_text_without_words_among_others_has_a_score_of_its_own(served: FakeServed) -> None:
    async def wordless(payload: Any, deadline: float | None) -> Any:
        return TextScore() if payload.text == "..." else await plausible(payload, deadline)

    served.answering = wordless
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json={"texts": ["a", "..."]})
    assert response.status_code == 200
    scored, empty = response.json()["results"]
    assert (scored["perplexity"] is None, empty["perplexity"], empty["tokens"]) == (False, None, 0)


@pytest.mark.parametrize(("top_k", "status"), [(2, 200), (2.0, 200), (2.5, 422), ("2", 422), (True, 422)])
async def test_a_float_with_a_whole_value_is_an_integer(shared: FastAPI, top_k: object, status: int) -> None:
    async with connect(shared) as client:
        assert (await client.post("/next-word", json={"text": "a", "top_k": top_k})).status_code == status
