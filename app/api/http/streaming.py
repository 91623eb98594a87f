"""Responses in parts: server-sent events (HTML standard, 9.2), long arrays."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final, Self

from fastapi.sse import EventSourceResponse
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from app.errors import SeqserveError

EVENTS: Final = "text/event-stream"
PIECE: Final = 256  # values of an array encoded at once, each perhaps 20 numbers: about a millisecond


class EventStream(EventSourceResponse):
    """A response of events. The generator of events is closed with the response, however it ends."""

    def __init__(
        self, first: bytes, others: AsyncGenerator[bytes, None], error_event: Callable[[SeqserveError], bytes]
    ) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_all_events(first, others, error_event), headers=headers)
        self._others = others

    @classmethod
    async def start(cls, events: AsyncGenerator[bytes, None], error_event: Callable[[SeqserveError], bytes]) -> Self:
        """Return the response once there is an event: an error before it has a status of its own.

        A later error becomes the last event, made by `error_event`.
        """
        return cls(await anext(events), events, error_event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with aclosing(self._others):
            await super().__call__(scope, receive, send)


async def _all_events(
    first: bytes, others: AsyncGenerator[bytes, None], error_event: Callable[[SeqserveError], bytes]
) -> AsyncGenerator[bytes, None]:
    yield first
    try:
        async for event in others:
            yield event
    except SeqserveError as error:
        yield error_event(error)


def json_array(values: Sequence[Any], encode: Callable[[Any], bytes] = to_json) -> Iterator[bytes]:
    """Yield an array as JSON, in pieces small enough for other threads to run in between."""
    for start in range(0, len(values), PIECE):
        yield (b"," if start else b"[") + encode(values[start : start + PIECE])[1:-1]
    yield b"]" if values else b"[]"
