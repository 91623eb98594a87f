"""The clients: `Client` blocks, `AsyncClient` awaits."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import httpx

from seqserve import calls, errors
from seqserve.answers import (
    CaptionsAnswer,
    CaptionWord,
    DigitsAnswer,
    ModelSummary,
    NextWordAnswer,
    PerplexityAnswer,
)
from seqserve.calls import Call, CaptionsOptions, DigitsOptions, ImageFile, NextWordOptions, PerplexityOptions
from seqserve.events import CaptionEvents
from seqserve.retries import Retries

URL: Final = "http://127.0.0.1:8000"
TIMEOUT_S: Final = 120.0  # the server's default
CONNECT_TIMEOUT_S: Final = 5.0
RETRIES: Final = Retries()

T = TypeVar("T")


class Client:
    """A client that blocks. It is a context manager, and threads may share it.

    Every request has the client's own `X-Session-Id`, by which a proxy keeps it with one server and its state cache:
    use one client per writer. Methods raise ConnectionFailed, UnexpectedAnswer or a Problem; see `seqserve.errors`.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect to the server at `url`, which may have a path; `timeout_s` limits the wait for a response."""
        self._retries = retries
        self._http = httpx.Client(**_settings(url, api_key, timeout_s), transport=transport)

    def next_word(self, text: str, **options: Unpack[NextWordOptions]) -> NextWordAnswer:
        """Suggest how a text may go on: the likeliest next words, or the rest of a word being typed."""
        return self._answer(calls.next_word(text, options))

    def perplexity(self, text: str | Sequence[str], **options: Unpack[PerplexityOptions]) -> PerplexityAnswer:
        """Score a text, or several."""
        return self._answer(calls.perplexity(text, options))

    def digits(self, *images: ImageFile, **options: Unpack[DigitsOptions]) -> DigitsAnswer:
        """Read the digit in each image."""
        return self._answer(calls.digits(images, options))

    def captions(self, *images: ImageFile, **options: Unpack[CaptionsOptions]) -> CaptionsAnswer:
        """Caption each photograph."""
        return self._answer(calls.captions(images, options))

    def stream_caption(
        self, image: ImageFile, **options: Unpack[CaptionsOptions]
    ) -> Generator[CaptionWord | CaptionsAnswer, None, None]:
        """Yield each word of the caption as soon as it is certain, then the whole answer."""
        response = self._send(calls.captions([image], options, calls.EVENTS), stream=True)
        events = CaptionEvents()
        try:
            for line in response.iter_lines():
                yield from events.feed(line)
            events.close()
        except httpx.TransportError as failure:
            raise errors.connection_failed(failure) from failure
        finally:
            response.close()

    def models(self) -> list[ModelSummary]:
        """List all models of the server, by name."""
        return self._answer(calls.models()).models

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answer(self, call: Call[T]) -> T:
        return call.decoded(self._send(call))

    def _send(self, call: Call[Any], *, stream: bool = False) -> httpx.Response:
        """Return the successful response, with its content unless it is a stream."""
        request = _request(self._http, call)
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                response.read()
            except httpx.TransportError as failure:
                wait = self._retries.after_failure(attempt, failure)
            else:
                wait = self._retries.after_error(attempt, response)
            time.sleep(wait)


class AsyncClient:
    """A client of coroutines, with the methods of `Client`. It is an asynchronous context manager."""

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Take the arguments of `Client`."""
        self._retries = retries
        self._http = httpx.AsyncClient(**_settings(url, api_key, timeout_s), transport=transport)

    async def next_word(self, text: str, **options: Unpack[NextWordOptions]) -> NextWordAnswer:
        """Suggest how a text may go on: the likeliest next words, or the rest of a word being typed."""
        return await self._answer(calls.next_word(text, options))

    async def perplexity(self, text: str | Sequence[str], **options: Unpack[PerplexityOptions]) -> PerplexityAnswer:
        """Score a text, or several."""
        return await self._answer(calls.perplexity(text, options))

    async def digits(self, *images: ImageFile, **options: Unpack[DigitsOptions]) -> DigitsAnswer:
        """Read the digit in each image."""
        return await self._answer(calls.digits(images, options))

    async def captions(self, *images: ImageFile, **options: Unpack[CaptionsOptions]) -> CaptionsAnswer:
        """Caption each photograph."""
        return await self._answer(calls.captions(images, options))

    async def stream_caption(
        self, image: ImageFile, **options: Unpack[CaptionsOptions]
    ) -> AsyncGenerator[CaptionWord | CaptionsAnswer, None]:
        """Yield each word of the caption as soon as it is certain, then the whole answer."""
        response = await self._send(calls.captions([image], options, calls.EVENTS), stream=True)
        events = CaptionEvents()
        try:
            async for line in response.aiter_lines():
                for event in events.feed(line):
                    yield event
            events.close()
        except httpx.TransportError as failure:
            raise errors.connection_failed(failure) from failure
        finally:
            await response.aclose()

    async def models(self) -> list[ModelSummary]:
        """List all models of the server, by name."""
        return (await self._answer(calls.models())).models

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _answer(self, call: Call[T]) -> T:
        return call.decoded(await self._send(call))

    async def _send(self, call: Call[Any], *, stream: bool = False) -> httpx.Response:
        """Return the successful response, with its content unless it is a stream."""
        request = _request(self._http, call)
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                await response.aread()
            except httpx.TransportError as failure:
                wait = self._retries.after_failure(attempt, failure)
            else:
                wait = self._retries.after_error(attempt, response)
            await asyncio.sleep(wait)


def _settings(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of httpx's clients."""
    headers = {"X-Session-Id": uuid.uuid4().hex}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)}


def _request(http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
    return http.build_request(
        call.method, call.path, params=call.params, json=call.json, files=call.files, headers={"Accept": call.accept}
    )
