"""POST /v1/completions."""

import json
from collections.abc import AsyncGenerator
from typing import Any, Final

import pytest

from app.errors import Overloaded
from app.runtime.families.completions import Completion, Part
from app.runtime.predictor import Partial
from tests.api.conftest import FakeServed, connect, service
from tests.api.published import Client

PROMPT: Final = "The company said it"
TEXT: Final = "the company said it expects to report a loss\nfor the third quarter\n" * 20


def complete(client: Client, prompt: Any = PROMPT, path: str = "/v1/completions", **fields: Any) -> dict[str, Any]:
    answer = client.post(path, json={"prompt": prompt, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def events(client: Client, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, without the last one."""
    answer = client.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0, "stream": True, **fields})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
    *found, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]


def test_every_dialect_has_the_same_numbers_bit_for_bit(client: Client) -> None:
    native = client.post(
        "/perplexity", json={"model": "ptb", "text": TEXT, "per_token": True, "alternatives": 3}
    ).json()["results"][0]
    choice = complete(client, TEXT, model="ptb", max_tokens=0, echo=True, logprobs=3)["choices"][0]
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
    outputs = client.post("/v2/models/ptb/infer", json={"inputs": [tensor]}).json()["outputs"]
    in_v2 = {output["name"]: output["data"] for output in outputs}
    scores, values = native["token_scores"], choice["logprobs"]
    assert values["token_logprobs"] == [score["log_probability"] for score in scores]
    assert values["text_offset"] == [score["start"] for score in scores]
    assert [list(top.items())[:3] for top in values["top_logprobs"]] == [
        [(other["token"], other["log_probability"]) for other in score["alternatives"]] for score in scores
    ]
    assert in_v2["log_likelihood"] == [native["log_likelihood"]]
    assert in_v2["perplexity"] == [native["perplexity"]]
    suggested = client.post("/next-word", json={"model": "ptb", "text": PROMPT, "top_k": 5}).json()["suggestions"]
    next_token = complete(client, model="ptb", max_tokens=1, logprobs=5)["choices"][0]["logprobs"]["top_logprobs"][0]
    by_word = {one["text"]: one["log_probability"] for one in suggested}
    assert {word: next_token[word] for word in by_word if word in next_token}.items() <= by_word.items()
    tensor["data"] = [PROMPT]
    outputs = client.post("/v2/models/ptb/infer", json={"inputs": [tensor], "outputs": [{"name": "probabilities"}]})
    assert outputs.json()["outputs"][0]["data"] == [one["probability"] for one in suggested]


def test_an_answer_names_its_model_and_counts_its_tokens(client: Client) -> None:
    found = complete(client, [PROMPT, "The dollar"], n=2, max_tokens=3, temperature=1, seed=5)
    assert found["object"] == "text_completion"
    assert found["system_fingerprint"].partition("@")[::2] == (
        found["model"],
        client.get(f"/models/{found['model']}").json()["version"],
    )
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    usage = found["usage"]
    assert usage["prompt_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (
        complete(client, [PROMPT, "The dollar"], n=2, max_tokens=3, temperature=1, seed=5)["choices"]
        == found["choices"]
    )


def test_a_text_its_ids_and_a_batch_are_the_same_prompt(client: Client) -> None:
    ids = client.post("/models/ptb/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    options: dict[str, Any] = {"model": "ptb", "max_tokens": 4, "logprobs": 2, "echo": True}
    (expected,) = complete(client, **options)["choices"]
    (of_ids,) = complete(client, ids, **options)["choices"]
    batch = complete(client, [ids, ids[:2]], **options)["choices"]
    assert of_ids["logprobs"]["token_logprobs"] == expected["logprobs"]["token_logprobs"]
    assert batch[0] == of_ids
    started = complete(client, [[2, *ids]], **options)["choices"][0]["logprobs"]
    assert started["tokens"][0] == "<eos>"
    assert (started["token_logprobs"][0], started["top_logprobs"][0]) == (None, None)
    assert started["token_logprobs"][1:] == expected["logprobs"]["token_logprobs"]


def test_a_greedy_token_is_the_first_of_its_likeliest_with_the_same_float(client: Client) -> None:
    found = complete(client, max_tokens=8, logprobs=1, ignore_eos=True)["choices"][0]["logprobs"]
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top == {token: value}


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 6},
        {"max_tokens": 4, "echo": True, "logprobs": 1},
        {"max_tokens": 4, "n": 3, "temperature": 1, "seed": 2, "logprobs": 0},
        {"max_tokens": 8, "stop": ["its", "<eos>"]},
        {"max_tokens": 0, "echo": True, "logprobs": 2},
        {"prompt": [PROMPT, "The dollar", ""], "max_tokens": 3},
        {"prompt": TEXT, "max_tokens": 3, "ignore_eos": True},
    ],
)
def test_a_stream_adds_up_to_the_answer(client: Client, fields: dict[str, Any]) -> None:
    whole = complete(client, **fields)
    chunks = events(client, stream_options={"include_usage": True}, **fields)
    *parts, last = chunks
    assert {name: last["usage"][name] for name in ("prompt_tokens", "completion_tokens")} == {
        name: whole["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    }
    assert last["choices"] == []
    for expected in whole["choices"]:
        choices = [chunk["choices"][0] for chunk in parts if chunk["choices"][0]["index"] == expected["index"]]
        assert "".join(choice["text"] for choice in choices) == expected["text"]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [expected["finish_reason"]]
        if expected["logprobs"]:
            for name, values in expected["logprobs"].items():
                assert [value for each in choices if each["logprobs"] for value in each["logprobs"][name]] == values
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_large_answer_is_encoded_in_pieces(client: Client) -> None:
    found = complete(client, TEXT, max_tokens=2, echo=True, logprobs=1, n=2)
    assert [len(choice["logprobs"]["tokens"]) for choice in found["choices"]] == [
        found["usage"]["prompt_tokens"] + 2
    ] * 2
    assert found["choices"][0] | {"index": 1} == found["choices"][1]


def test_a_corpus_of_ids_is_one_prompt(client: Client) -> None:
    tokens = [3] * 70_000
    assert len(client.post("/models/ptb/detokenize", json={"tokens": tokens}).json()["prompt"]) > len(tokens)
    answer = client.post("/v1/completions", json={"prompt": tokens, "n": 0})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


@pytest.mark.anyio
async def test_an_error_in_a_stream_is_its_last_event(served: FakeServed) -> None:
    async def streamed(example: Any, **_: Any) -> AsyncGenerator[Partial[Part, Completion], None]:
        for text in texts:
            yield Partial([Part(0, text, ())])
        raise Overloaded("the queue is full")

    async def prepared(*_: Any, **__: Any) -> None:
        return None

    served.prepared, served.stream = prepared, streamed  # type: ignore[method-assign]
    async with connect(service(served)) as client:
        texts = [" a"]
        late = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
        texts = []
        early = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
    error = {"message": "the queue is full", "type": "server_error", "param": None, "code": "overloaded"}
    *_, last, rest = late.text.split("\n\n")
    assert (late.status_code, rest, json.loads(last.removeprefix("data: "))) == (200, "", {"error": error})
    assert (early.status_code, early.json(), early.headers["retry-after"]) == (503, {"error": error}, "1")


IGNORED: Final[list[dict[str, Any]]] = [
    {"made_up": 1},
    {"user": "u"},
    {"model": None, "logprobs": None, "stop": None, "seed": None, "suffix": None, "best_of": None, "n": None},
    {"suffix": "", "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "min_p": 0},
    {"top_k": -1, "repetition_penalty": 1, "best_of": 1},
    {"top_k": 0, "repetition_penalty": 1.0},
    {"stream_options": {"include_usage": True, "made_up": 1}},
]
REJECTED: Final[list[tuple[str, Any]]] = [
    ("prompt", []),
    ("prompt", 7),
    ("prompt", ["a", 7]),
    ("prompt", [7, "a"]),
    ("prompt", [[7], "a"]),
    ("prompt", [True]),
    ("prompt", [1.5]),
    ("prompt", [-1]),
    ("prompt", [10**9]),
    ("prompt", [[10**30]]),
    ("prompt", ["a"] * 257),
    ("prompt", {"text": "a"}),
    ("max_tokens", -1),
    ("max_tokens", 4097),
    ("max_tokens", "1"),
    ("temperature", -1),
    ("temperature", 2.1),
    ("temperature", "1"),
    ("top_p", 0),
    ("top_p", 1.1),
    ("seed", 1.5),
    ("seed", "1"),
    ("n", 0),
    ("n", 17),
    ("stop", ""),
    ("stop", [""]),
    ("stop", ["a"] * 17),
    ("stop", 1),
    ("logprobs", 21),
    ("logprobs", True),
    ("echo", "yes"),
    ("stream", 1),
    ("stream_options", []),
    ("best_of", 7),
    ("suffix", "x"),
    ("logit_bias", {"50256": -100}),
    ("presence_penalty", 0.5),
    ("frequency_penalty", -1),
    ("top_k", 40),
    ("min_p", 0.1),
    ("repetition_penalty", 1.1),
    ("model", 7),
]


@pytest.mark.parametrize("fields", IGNORED)
def test_unknown_fields_and_neutral_values_are_ignored(client: Client, fields: dict[str, Any]) -> None:
    assert complete(client, max_tokens=2, **fields)["choices"] == complete(client, max_tokens=2)["choices"]


@pytest.mark.parametrize(("field", "value"), REJECTED)
def test_a_field_that_can_not_be_honoured_is_rejected_by_name(client: Client, field: str, value: Any) -> None:
    answer = client.post("/v1/completions", json={"prompt": PROMPT, field: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", field, None)
    assert error["message"]


def test_choices_of_all_prompts_are_limited(client: Client) -> None:
    answer = client.post("/v1/completions", json={"prompt": ["a"] * 32, "n": 9})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


def test_another_model_is_unknown_with_the_route_for_it(client: Client) -> None:
    for model, words in {"none": "no such model", "captions": "POST /v1/chat/completions"}.items():
        answer = client.post("/v1/completions", json={"prompt": "a", "model": model})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert words in answer.json()["error"]["message"]
    assert complete(client, path="/models/ptb/v1/completions")["model"] == "ptb"
    answer = client.post("/models/ptb/v1/completions", json={"prompt": "a", "model": "other"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


def test_a_client_is_not_to_repeat_a_request_that_timed_out(client: Client) -> None:
    answer = client.post("/v1/completions", json={"prompt": TEXT}, headers={"X-Request-Timeout": "0.000001"})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
    assert answer.json()["error"]["code"] == "deadline_exceeded"
