"""A function over a large text: in chunks, by one process a core, in order, and in bounded memory."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from itertools import chain, islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from tqdm import tqdm

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")


CHUNK: Final = 1 << 20  # bytes of text that are worked on at once
_FEW: Final = 8  # items that are done here before processes would have started


def chunks(
    items: Iterable[Item], text: Callable[[Item], str], label: str, files: Sequence[Path]
) -> Iterator[list[Item]]:
    """Yield lists of items whose texts have CHUNK bytes or more together, with a progress bar over the files."""
    compressed = any(path.suffix in (".gz", ".xz") for path in files)
    total = None if compressed else sum(path.stat().st_size for path in files)
    chunk, size = list[Item](), 0
    with tqdm(None, label, total, unit="B", unit_scale=True, mininterval=1, delay=1) as bar:
        for item in items:
            chunk.append(item)
            size += len(text(item).encode()) + 1
            if size >= CHUNK:
                yield chunk
                bar.update(size)
                chunk, size = [], 0
        if chunk:
            yield chunk
            bar.update(size)


def parallel(function: Callable[[State, Item], Result], state: State, items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(state, item) of each item, in order; a few items are worked on in this process.

    The other processes import the function's module and nothing of this program (multiprocessing would import its main
    module, and torch with it), and get the state once. At most two items a process, or their results, wait. Raise
    RuntimeError if a process ends early.
    """
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rest = iter(items)
    first = list(islice(rest, _FEW + 1))
    if len(first) <= _FEW:
        yield from (function(state, item) for item in first)
        return
    with ExitStack() as stack:
        idle = SimpleQueue[_Worker]()
        for _ in range(processes):
            idle.put(stack.enter_context(closing(_Worker(function, state))))

        def call(item: Item) -> Result:
            worker = idle.get()
            try:
                result: Result = worker(item)
                return result
            finally:
                idle.put(worker)

        threads = stack.enter_context(ThreadPoolExecutor(processes))
        waiting = deque[Future[Result]]()
        try:
            for item in chain(first, rest):
                waiting.append(threads.submit(call, item))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


class _Worker:
    """A process that answers items until its connection is closed, as it also is when this process is killed."""

    def __init__(self, function: Callable[..., Any], state: object) -> None:
        self._connection, remote = Pipe()
        with remote:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(remote.fileno())],
                pass_fds=[remote.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            )
        self._connection.send((function, state))

    def __call__(self, item: object) -> Any:
        try:
            self._connection.send(item)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            status = self._process.wait()
            raise RuntimeError(f"a process that reads the corpus ended with exit status {status}") from error

    def close(self) -> None:
        self._connection.close()
        self._process.wait()


def _answer(connection: "Connection[Any, Any]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    function, state = connection.recv()
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send(function(state, connection.recv()))


if __name__ == "__main__":
    _answer(Connection(int(sys.argv[1])))
