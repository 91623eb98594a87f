"""A process for work whose size a client chooses, such as parsing a large body, with limits of time and memory.

In a thread it would hold the interpreter, and with it every other request. The process starts with the first call.
"""

import asyncio
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from app.errors import NotReady, Overloaded, TooLarge
from app.runtime.memory import limit_heap

MAX_WAITING: Final = 64  # calls, those that run included
TIME_S: Final = 10.0  # of one call
MEMORY_BYTES: Final = 2**30  # address space of one process
STOPPED: Final = (-signal.SIGTERM, -signal.SIGHUP)  # a service manager may stop all processes: the call is repeated
CHECK_S: Final = 1.0  # interval of the checks that a pool with a call is whole
NICE: Final = 10  # added to the niceness: interactive requests have priority

Result = TypeVar("Result")


class WorkProcess:
    """A process that shares no memory with the server, and its bounded queue."""

    def __init__(self, *, time_s: float = TIME_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._time_s = time_s
        self._memory_bytes = memory_bytes
        self._pool: ProcessPool | None = None
        self._closing = False
        self._waiting = 0

    async def run(self, name: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return the result of a function of a module; `name` is that of the input in errors.

        Raise its error, TooLarge for more than the limits of time and memory, Overloaded while too many calls wait,
        NotReady after `close`. Cancelling the task ends the process that works on the call.
        """
        if self._closing:
            raise NotReady(f"{name}: is shutting down")
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{name}: {self._waiting} large inputs wait already; retry later")
        self._waiting += 1
        try:
            try:
                return await self._call(function, arguments)
            except (BrokenProcessPool, ProcessExpired) as error:
                if isinstance(error, ProcessExpired) and error.exitcode not in STOPPED:
                    raise
                return await self._call(function, arguments)
        except TimeoutError as error:
            raise TooLarge(f"{name}: expected at most {self._time_s:g} s of work, found more", unread=False) from error
        except (MemoryError, BrokenProcessPool, ProcessExpired) as error:
            memory = self._memory_bytes // 2**20
            raise TooLarge(f"{name}: expected at most {memory} MiB of work, found more", unread=False) from error
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the process."""
        self._closing = True
        if self._pool:
            self._pool.close()  # type: ignore[no-untyped-call]
            await asyncio.to_thread(self._pool.join)

    async def _call(self, function: Callable[..., Result], arguments: Sequence[Any]) -> Result:
        pool = self._started()
        call: ProcessFuture[Result] = pool.schedule(function, args=arguments, timeout=self._time_s)
        result = asyncio.wrap_future(call)
        try:
            while not (await asyncio.wait((result,), timeout=CHECK_S))[0]:
                if not pool.active:
                    raise BrokenProcessPool
            return result.result()
        finally:
            result.cancel()

    def _started(self) -> ProcessPool:
        if self._pool and not self._pool.active:  # a process that dies at an odd moment breaks it
            threading.Thread(target=self._pool.join, daemon=True).start()  # ends it
            self._pool = None
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=1,
                initializer=_limit,
                initargs=(self._memory_bytes,),
                context=multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
            )
        return self._pool


def _limit(memory_bytes: int) -> None:
    """Limit a new process's memory and priority; leave Ctrl-C to the server."""
    os.nice(NICE)
    limit_heap()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # in place of pebble's handler, which hides the signal
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
