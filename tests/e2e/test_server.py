"""A real server over HTTP."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import serving

TEXT = "The company's profits rose.\nMarket shares fell, said Mr. Banks"


def test_the_server_is_ready_and_lists_its_model(client: httpx.Client) -> None:
    assert client.get("/readyz").status_code == 200
    (model,) = client.get("/models").json()["models"]
    assert (model["name"], model["version"], model["ready"]) == ("tiny", "1", True)
    assert client.get("/models/tiny").json()["card"].startswith("# tiny")


def test_a_suggestion_is_as_likely_as_the_same_word_in_a_text(client: httpx.Client) -> None:
    answer = client.post("/next-word", json={"text": TEXT, "top_k": 3}).json()
    probabilities = [one["probability"] for one in answer["suggestions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    for one in answer["suggestions"]:
        body = {"text": f"{TEXT} {one['text']}", "per_token": True, "alternatives": 10}
        rows = client.post("/perplexity", json=body).json()["results"][0]["token_scores"]
        assert rows[-2]["log_probability"] == pytest.approx(one["log_probability"], abs=1e-5)


def test_a_word_being_typed_is_completed(client: httpx.Client) -> None:
    answer = client.post("/next-word", json={"text": "The company said pro", "complete": True}).json()
    assert [one["text"] for one in answer["suggestions"]] == ["profits"]
    assert answer["suggestions"][0]["probability"] == pytest.approx(1)


def test_a_cached_state_gives_the_same_answer(client: httpx.Client) -> None:
    first = client.post("/next-word", json={"text": "the bank trading new prices", "words": 3}).json()
    again = client.post("/next-word", json={"text": "the bank trading new prices", "words": 3}).json()
    assert again["cached_tokens"] > first["cached_tokens"]
    assert again["suggestions"] == first["suggestions"]


def test_texts_are_scored_separately_and_pooled(client: httpx.Client) -> None:
    texts = [TEXT, "profits", "the banks fell " * 40]
    alone = [client.post("/perplexity", json={"text": text}).json()["corpus"] for text in texts]
    together = client.post("/perplexity", json={"texts": texts}).json()
    assert together["results"] == alone
    assert together["corpus"]["tokens"] == sum(score["tokens"] for score in alone)


def test_offsets_point_into_the_text_as_sent(client: httpx.Client) -> None:
    rows = client.post("/perplexity", json={"text": TEXT, "per_token": True}).json()["results"][0]["token_scores"]
    assert [TEXT[row["start"] : row["end"]] for row in rows if row["token"] == "'s"] == ["'s"]
    assert all(row["start"] == row["end"] for row in rows if row["token"] == "<eos>")


def test_a_damaged_model_is_unavailable_and_the_other_serves(damaged_store: Path) -> None:
    with serving(damaged_store) as (client, _):
        ready = client.get("/readyz")
        assert ready.status_code == 503
        reasons = {model["name"]: model["reason"] for model in ready.json()["models"]}
        assert reasons["tiny"] is None
        assert "vocabulary.txt" in reasons["broken"]
        assert client.post("/next-word", json={"text": "the"}).json()["model"] == "tiny"
        assert client.post("/next-word", json={"text": "the", "model": "broken"}).status_code == 503


def test_sigterm_causes_a_clean_exit(tiny_store: Path) -> None:
    log: list[str] = []
    with serving(tiny_store, log) as (client, process):
        assert client.get("/livez", headers={"Connection": "close"}).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    (line,) = log
    assert json.loads(line)["route"] == "/livez"


def test_a_request_beyond_the_grace_period_gets_503(tiny_store: Path) -> None:
    with serving(tiny_store, SEQSERVE_GRACE_S="0") as (client, process), ThreadPoolExecutor() as threads:
        pending = threads.submit(client.post, "/perplexity", json={"text": "the company said profits rose " * 100_000})
        while 'seqserve_batch_size_count{model="tiny"}' not in httpx.get(client.base_url.join("/metrics")).text:
            assert not pending.done()
        process.send_signal(signal.SIGTERM)
        answer = pending.result()
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-ready")
        assert answer.headers["x-request-id"]
        assert process.wait() == 0
