"""The package openai."""

import asyncio
from base64 import b64encode
from typing import Any

import openai
import pytest

from .conftest import Server
from .native import SCENE, perplexity, post

PROMPT = "The company said it"
TEXT = "the company said it expects to report a loss\nthe dollar fell N N against the yen\n"


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": "ptb", "prompt": PROMPT, "temperature": 0, **fields})


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["captions", "everyday", "ptb"]
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("none")
    assert (error.value.code, error.value.request_id is not None) == ("model_not_found", True)


def test_a_wrong_key_is_an_authentication_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match="no such key") as error:
        complete(client.with_options(api_key="wrong"))
    assert error.value.code == "invalid_api_key"


def test_a_completion_continues_the_prompt(client: openai.OpenAI, server: Server) -> None:
    found = complete(client, max_tokens=1, logprobs=1)
    (suggestion,) = post(server, "/next-word", {"model": "ptb", "text": PROMPT, "top_k": 1})["suggestions"]
    (choice,) = found.choices
    assert (choice.text, choice.finish_reason) == (f" {suggestion['text']}", "length")
    assert choice.logprobs.token_logprobs == [suggestion["log_probability"]]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (4, 1)


def test_an_echo_scores_the_prompt(client: openai.OpenAI, server: Server) -> None:
    (choice,) = complete(client, prompt=TEXT, max_tokens=0, echo=True, logprobs=0).choices
    score = perplexity(server, TEXT)
    assert (choice.text, len(choice.logprobs.tokens)) == (TEXT, score["tokens"])
    assert sum(choice.logprobs.token_logprobs) == pytest.approx(score["log_likelihood"], rel=1e-12)


def test_a_stream_is_the_completion(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 1, "seed": 7, "logprobs": 2, "echo": True, "n": 2}
    whole = complete(client, **fields)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}, **fields))
    for choice in whole.choices:
        parts = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [token for part in parts if part.logprobs for token in part.logprobs.tokens] == choice.logprobs.tokens
        assert parts[-1].finish_reason == choice.finish_reason
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_wrong_field_is_named(client: openai.OpenAI) -> None:
    for field, value in {"max_tokens": -1, "suffix": "x", "prompt": [], "best_of": 7}.items():
        with pytest.raises(openai.BadRequestError) as error:
            complete(client, **{field: value})
        assert error.value.param == field


def test_the_asynchronous_client(server: Server) -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/models/ptb/v1", api_key=server.key) as client:
            return await client.completions.create(model="ptb", prompt=PROMPT, max_tokens=2, temperature=0)

    assert asyncio.run(ask()).choices[0].text


def chat(client: openai.OpenAI, content: Any, **fields: Any) -> Any:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    return client.chat.completions.create(model="captions", messages=messages, **fields)


def test_an_image_is_captioned(client: openai.OpenAI, server: Server) -> None:
    caption = post(server, "/captions", SCENE)["results"][0]["caption"]
    url = "data:image/png;base64," + b64encode(SCENE).decode()
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    assert chat(client, content, max_tokens=300).choices[0].message.content == caption
    chunks = list(chat(client, content, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == caption
    assert "image_url" in chat(client, "Hi").choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="nothing is fetched"):
        chat(client, [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}])
