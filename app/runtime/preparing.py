"""A few threads for the payloads that take long to check, beside the event loop and the inference threads."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from app.errors import DeadlineExceeded, NotReady, Overloaded
from app.runtime.batching import Observer

Example = TypeVar("Example")

THREADS: Final = 2  # a picture of 25 megapixels takes up to 500 MB while it is decoded, and a core


class Preparing:
    """Prepares for all models, THREADS payloads at once, in their order; no more than `queue_size` others wait."""

    def __init__(self, observer: Observer, *, queue_size: int, now: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._room = queue_size + THREADS
        self._now = now
        self._closing = False
        self._threads = ThreadPoolExecutor(THREADS, "preparing")

    async def run(self, model: str, prepare: Callable[[], Example], deadline: float | None = None) -> Example:
        """What `prepare` returns or raises, in a thread. `deadline` is a time of the clock `now`.

        Raise Overloaded if too many wait, NotReady if it is closed, DeadlineExceeded if the deadline passes first. What
        nobody waits for any more is not begun.
        """
        self._accept(model)
        accepted = self._now()
        try:
            async with asyncio.timeout(None if deadline is None else deadline - accepted):
                example = await asyncio.get_running_loop().run_in_executor(self._threads, prepare)
            self._observer.observe_prepare(model, self._now() - accepted)
            return example
        except TimeoutError as error:
            self._observer.count_refusal(model, "deadline")
            raise DeadlineExceeded(f"{model}: the deadline passed before the answer was begun") from error
        except asyncio.CancelledError:
            self._observer.count_refusal(model, "cancelled")
            raise
        finally:
            self._room += 1

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the threads."""
        self._closing = True
        await asyncio.to_thread(self._threads.shutdown)

    def _accept(self, model: str) -> None:
        if self._closing:
            raise NotReady(f"{model}: is shutting down")
        if not self._room:
            self._observer.count_refusal(model, "overloaded")
            raise Overloaded(f"{model}: too many requests wait to be read; try again soon")
        self._room -= 1
