"""Concurrent examples of one request: answers in order, or the first error."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeAlias, TypeVar

from app.errors import Overloaded

Answer = TypeVar("Answer")
Submit: TypeAlias = Callable[[], Awaitable[Answer]]

FAN_OUT: Final = 32  # concurrent examples of one request: enough to fill a batch, too few to fill a queue
RETRY_S: Final = 0.05  # before a full queue is tried again for the last examples


async def all_answers(submits: Sequence[Submit[Answer]], deadline: float) -> list[Answer]:
    """Return the answers of `submits` in order; if one fails, cancel the rest and raise its error.

    Examples rejected by a full queue are submitted again after those accepted. Raise Overloaded if none is accepted,
    or none in time: `deadline` is a time of time.monotonic.
    """
    if len(submits) == 1:
        return [await submits[0]()]
    waiting = deque(enumerate(submits))
    answers: dict[int, Answer] = {}
    running = 0

    async def answer(index: int, submit: Submit[Answer]) -> None:
        nonlocal running
        running += 1
        try:
            answers[index] = await submit()
        finally:
            running -= 1

    async def work() -> None:
        while waiting:
            index, submit = waiting.popleft()
            try:
                await answer(index, submit)
            except Overloaded:
                waiting.appendleft((index, submit))
                if running:
                    return  # the running workers will take it
                if not answers or time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RETRY_S)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(FAN_OUT, len(submits))):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [answers[index] for index in range(len(submits))]


async def merged(
    streams: Sequence[Callable[[], AsyncGenerator[Answer, None]]],
) -> AsyncGenerator[tuple[int, Answer], None]:
    """Yield the items of concurrent streams with the stream's index, as they come; raise the first error.

    At most FAN_OUT streams run at once. Closing the generator closes them.
    """
    items = asyncio.Queue[tuple[int, Answer] | BaseException | None](FAN_OUT)
    slots = asyncio.Semaphore(FAN_OUT)

    async def read(index: int, stream: Callable[[], AsyncGenerator[Answer, None]]) -> None:
        try:
            async with slots, aclosing(stream()) as answers:
                async for answer in answers:
                    await items.put((index, answer))
            await items.put(None)
        except Exception as error:  # noqa: BLE001  # raised in the reader
            await items.put(error)

    if len(streams) == 1:
        async with aclosing(streams[0]()) as alone:
            async for answer in alone:
                yield 0, answer
        return
    tasks = [asyncio.ensure_future(read(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
