"""Responses of server-sent events (HTML standard, 9.2)."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, Self

from fastapi.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from app.errors import SeqserveError

EVENTS: Final = "text/event-stream"


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
