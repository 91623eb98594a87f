"""POST /v1/completions."""

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Final
from uuid import uuid4

from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse

from app.api.http import costs, problems
from app.api.http.context import RegistryOf
from app.api.http.endpoints import Deadline
from app.api.http.fan_out import all_answers, merged
from app.api.http.streaming import EventStream, json_array
from app.api.openai.errors import ERRORS
from app.api.openai.models import LANGUAGE_MODEL, PathModel, choose, origin
from app.api.openai.schemas import CompletionChoice, CompletionRequest, LogProbs, Usage
from app.errors import SeqserveError
from app.runtime.families.completions import Complete, Completion, Part, ScoredToken
from app.runtime.fields import limits
from app.runtime.registry import Served

DONE: Final = b"data: [DONE]\n\n"
SHORT: Final = 256  # tokens with log-probabilities that are encoded on the event loop: about a millisecond
TOKEN_CHARACTERS: Final = 5  # that an id costs as much as
SEED_BITS: Final = 64
LIMITS: Final = limits(CompletionRequest)


async def completions(
    body: CompletionRequest, registry: RegistryOf, deadline: Deadline, path_model: PathModel
) -> Response:
    """Continue prompts by sampled or by the likeliest tokens; with `echo` and `logprobs`, score them.

    With `stream`, each event has the text and the log-probabilities that one token adds to a choice.
    """
    with choose(registry, path_model, body.model, LANGUAGE_MODEL) as served:
        payloads = _payloads(body)
        head: dict[str, Any] = {"id": f"cmpl-{uuid4().hex}", "object": "text_completion", **origin(served, time.time())}
        if body.stream:
            return await EventStream.start(_events(served, body, payloads, head, deadline), error_event)
        several = len(payloads) > 1
        submits = [partial(served.answer, payload, deadline=deadline, bulk=several) for payload in payloads]
        answers: list[Completion] = await all_answers(submits, deadline)
    usage = _usage(answers)
    if body.logprobs is not None and usage["total_tokens"] * body.n > SHORT:
        pieces = _encoded(head, body, answers, usage)
        return StreamingResponse(pieces, media_type="application/json")  # encoded in a worker thread
    answer = head | {"choices": list(_choices(body, answers)), "usage": usage}
    return Response(to_json(answer), media_type="application/json")


def _payloads(body: CompletionRequest) -> list[Complete]:
    settings = {each.name: getattr(body, each.name) for each in fields(Complete)}
    if body.seed is None:
        settings["seed"] = secrets.randbits(SEED_BITS)
    return [Complete(**settings | {"prompt": prompt}) for prompt in body.prompt]


def _choices(body: CompletionRequest, answers: Sequence[Completion]) -> Iterator[CompletionChoice]:
    for index in range(len(answers) * body.n):
        parts = [part for part in answers[index // body.n].parts if part.choice == index % body.n]
        tokens = [token for part in parts for token in part.tokens]
        yield {
            "text": "".join(part.text for part in parts),
            "index": index,
            "logprobs": None if body.logprobs is None else _log_probs(tokens),
            "finish_reason": parts[-1].finish_reason,
        }


def _log_probs(tokens: Sequence[ScoredToken]) -> LogProbs:
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.log_probability for token in tokens],
        "top_logprobs": [  # always with the token itself
            None
            if token.log_probability is None or token.likeliest is None
            else {**dict(token.likeliest), token.token: token.log_probability}
            for token in tokens
        ],
        "text_offset": [token.offset for token in tokens],
    }


def _encoded(
    head: dict[str, Any], body: CompletionRequest, answers: Sequence[Completion], usage: Usage
) -> Iterator[bytes]:
    """Encode an answer as JSON, in pieces small enough for other threads to run in between."""
    yield to_json(head | {"usage": usage})[:-1] + b',"choices":['
    for choice in _choices(body, answers):
        yield b"," if choice["index"] else b""
        log_probs = choice.pop("logprobs")  # type: ignore[misc]  # the last field, in pieces
        yield to_json(choice)[:-1] + b',"logprobs":{'
        for number, (name, values) in enumerate((log_probs or {}).items()):
            yield (b"," if number else b"") + b'"%b":' % name.encode()
            assert isinstance(values, list)
            yield from json_array(values)
        yield b"}}"
    yield b"]}"


def _usage(answers: Sequence[Completion]) -> Usage:
    prompt = sum(answer.prompt_tokens for answer in answers)
    completion = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in answers)},
    }


async def _events(
    served: Served, body: CompletionRequest, payloads: Sequence[Complete], head: dict[str, Any], deadline: float
) -> AsyncGenerator[bytes, None]:
    """Yield an event for each part of a choice, then one with the usage if requested, and the last one."""
    answers: list[Completion] = []
    with served:  # until the last event
        async for prompt, (parts, answer) in merged([partial(_stream, served, each, deadline) for each in payloads]):
            for part in parts:
                yield _event(head | {"choices": [_chunk(part, prompt * body.n, body.logprobs)]})
            if answer:
                answers.append(answer)
    if body.stream_options.include_usage:
        yield _event(head | {"choices": [], "usage": _usage(answers)})
    yield DONE


async def _stream(served: Served, payload: Complete, deadline: float) -> AsyncGenerator[Any, None]:
    """Yield the partial answers to one prompt."""
    example = await served.prepared(lambda: payload, at_once=not payload.slow, deadline=deadline)
    async for output in served.stream(example, deadline=deadline):
        yield output


def _chunk(part: Part, shift: int, log_probs: int | None) -> CompletionChoice:
    return {
        "text": part.text,
        "index": shift + part.choice,
        "logprobs": _log_probs(part.tokens) if log_probs is not None and part.tokens else None,
        "finish_reason": part.finish_reason,
    }


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % to_json(data)


def error_event(error: SeqserveError) -> bytes:
    """Return an error as the last event of a stream."""
    return b"data: %b\n\n" % bytes(ERRORS.respond(problems.of(error)).body)


def cost(document: Any) -> int:
    """Return the units of a request: of its texts or ids, their alternatives, and the tokens that may be generated."""
    sent = document if isinstance(document, dict) else {}
    prompt = sent.get("prompt")
    prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int | float) else [prompt]
    sizes = [
        len(each) * (1 if isinstance(each, str) else TOKEN_CHARACTERS)
        for each in prompts
        if isinstance(each, str | list)
    ]
    logprobs, n, max_tokens = (costs.number(sent.get(name), LIMITS[name]) for name in ("logprobs", "n", "max_tokens"))
    alternatives = logprobs if sent.get("echo") else 0
    characters = sum(sizes) * (costs.TOKENS + alternatives) // costs.TOKENS
    return characters // costs.CHARACTERS + len(sizes) * n * max_tokens // costs.STEPS
