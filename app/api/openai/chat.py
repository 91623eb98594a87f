"""POST /v1/chat/completions: captions for programs that describe images through this route. It reads no words."""

import re
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final
from uuid import uuid4

from pydantic_core import to_json
from starlette.datastructures import QueryParams
from starlette.responses import Response

from app.api.http import costs, uploads
from app.api.http.context import RegistryOf
from app.api.http.endpoints import Deadline
from app.api.http.image_answers import ImageExample, image_answers
from app.api.http.streaming import EventStream
from app.api.http.uploads import PART, Upload
from app.api.native.vision import MAX_CAPTIONS
from app.api.openai.completions import DONE, error_event
from app.api.openai.models import CAPTIONS, LANGUAGE_MODEL, ROUTES, PathModel, choose, origin
from app.api.openai.schemas import ChatChoice, ChatRequest, Usage
from app.errors import InvalidField
from app.runtime.families.captions import Describe, Description
from app.runtime.registry import Registry, Served

DATA_URL: Final = re.compile(r"data:[^,]{0,256};base64,", re.IGNORECASE)
SENTENCE: Final = "I describe photographs and read nothing else: send one as an image_url part."
FIELD: Final = "messages"


async def chat(body: ChatRequest, registry: RegistryOf, deadline: Deadline, path_model: PathModel) -> Response:
    """Caption the images of the user's messages, a line each. Nothing is fetched, and no text is read."""
    with _captioner(registry, path_model, body.model) as served:
        images = await _images(body.messages)
        head: dict[str, Any] = {"id": f"chatcmpl-{uuid4().hex}", **origin(served, time.time())}
        if body.stream:
            return await EventStream.start(_events(served, body, images, head, deadline), error_event)
        found: list[Description] = await image_answers(served, images, Describe, deadline)
    content = "\n".join(one.text for one in found) if images else SENTENCE
    words = body.max_tokens or body.max_completion_tokens
    text = _cut(content, words)
    choice: ChatChoice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": "stop" if text == content else "length",
    }
    answer = head | {"object": "chat.completion", "choices": [choice], "usage": _usage(text)}
    return Response(to_json(answer), media_type="application/json")


def _captioner(registry: Registry, path_model: str | None, model: str | None) -> Served:
    """Return the captioner. Raise InvalidField for a language model, with its route."""
    name = path_model or model
    if name and any(each.name == name and each.manifest.family == LANGUAGE_MODEL for each in registry.served()):
        raise InvalidField("model", f"expected a captioner, found the language model {name}: {ROUTES[LANGUAGE_MODEL]}")
    return choose(registry, path_model, model, CAPTIONS)


def _urls(messages: Sequence[Any]) -> Iterator[Any]:
    """Yield the address of each image of the user's messages."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) and message.get("role") == "user" else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "image_url":
                url = part.get("image_url")
                yield url.get("url") if isinstance(url, dict) else url


async def _images(messages: Sequence[Any]) -> list[Upload]:
    """Return the images. Raise InvalidField for an address, or for too many."""
    urls = list(_urls(messages))
    if len(urls) > MAX_CAPTIONS:
        raise InvalidField(FIELD, f"expected at most {MAX_CAPTIONS} images, found {len(urls)}")
    images = []
    for index, url in enumerate(urls):
        head = DATA_URL.match(url) if isinstance(url, str) else None
        if head is None:
            raise InvalidField(FIELD, "image_url: expected a data URL in base64: nothing is fetched")
        try:
            content = await uploads.from_base64(url[head.end() :])
        except ValueError as error:
            raise InvalidField(FIELD, f"image_url: expected a data URL in base64: {error}") from error
        images.append(uploads.of_bytes(f"{PART}.{index}" if len(urls) > 1 else PART, content))
    return images


def _cut(text: str, words: int | None) -> str:
    """Return the first words of a text."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text[: ends[words - 1]] if words and words <= len(ends) else text


def _usage(text: str) -> Usage:
    words = len(text.split())
    return {"prompt_tokens": 0, "completion_tokens": words, "total_tokens": words}


async def _events(
    served: Served, body: ChatRequest, images: Sequence[Upload], head: dict[str, Any], deadline: float
) -> AsyncGenerator[bytes, None]:
    """Yield an event for each word, then the end."""

    def event(choices: Sequence[dict[str, Any]], **more: Any) -> bytes:
        return b"data: %b\n\n" % to_json(head | {"object": "chat.completion.chunk", "choices": choices} | more)

    def choice(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}

    words = body.max_tokens or body.max_completion_tokens
    sent, reason = "", "stop"
    with served:  # until the last event
        async with aclosing(_texts(served, images, deadline)) as texts:
            async for text in texts:
                if not sent:
                    yield event([choice({"role": "assistant", "content": ""})])
                whole = sent + text
                text = _cut(whole, words)[len(sent) :]
                sent += text
                if text:
                    yield event([choice({"content": text})])
                if sent != whole:
                    reason = "length"
                    break
    yield event([choice({}, reason)])
    if body.stream_options.include_usage:
        yield event([], usage=_usage(sent))
    yield DONE


async def _texts(served: Served, images: Sequence[Upload], deadline: float) -> AsyncGenerator[str, None]:
    """Yield the captions word by word, each with the space or the line break before it."""
    if not images:
        yield SENTENCE
    for index, image in enumerate(images):
        example = await ImageExample(served, image, Describe, deadline).prepared()
        caption = ""
        async with aclosing(served.stream(example, deadline=deadline)) as partials:
            async for parts, answer in partials:
                for word in parts:
                    space = " " if caption else "\n" * (index > 0)
                    caption += f" {word}" if caption else word
                    yield space + word
                if answer is None:
                    continue
                text = f"{caption} ({answer.text})" if caption and answer.caption is None else answer.text
                if rest := text.removeprefix(caption):
                    yield rest if caption else "\n" * (index > 0) + rest


def cost(document: Any) -> int:
    """Return the units of a request: those of its images."""
    messages = document.get("messages") if isinstance(document, dict) else None
    images = len(list(_urls(messages))) if isinstance(messages, list) else 0
    return costs.of_images(min(images, MAX_CAPTIONS), QueryParams())
