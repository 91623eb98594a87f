"""One request, several answers: asked for side by side, told in order, none of them if one fails."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias, TypeVar

from app.errors import Overloaded

Answer = TypeVar("Answer")
Ask: TypeAlias = Callable[[], Awaitable[Answer]]

FAN_OUT: Final = 32  # answers of one request waited for at once: enough to fill a batch, too few to fill a queue
RETRY_S: Final = 0.05  # until the last of a request asks a full queue for a place again


async def all_answers(asks: Sequence[Ask[Answer]], deadline: float) -> list[Answer]:
    """What each of `asks` is answered, in their order; if one fails, the rest is cancelled and its error raised.

    Where the queue has no room for more of them, those that have a place go first, and who had none asks anew. Raise
    Overloaded if none gets one, or none in time: `deadline` is a time of time.monotonic.
    """
    if len(asks) == 1:
        return [await asks[0]()]
    waiting = deque(enumerate(asks))
    answers: dict[int, Answer] = {}
    under_way = 0

    async def answer(place: int, ask: Ask[Answer]) -> None:
        nonlocal under_way
        under_way += 1
        try:
            answers[place] = await ask()
        finally:
            under_way -= 1

    async def work() -> None:
        while waiting:
            place, ask = waiting.popleft()
            try:
                await answer(place, ask)
            except Overloaded:
                waiting.appendleft((place, ask))
                if under_way:
                    return  # those under way will come to it
                if not answers or time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RETRY_S)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(FAN_OUT, len(asks))):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [answers[place] for place in range(len(asks))]
