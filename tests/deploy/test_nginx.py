"""deploy/nginx in front of three servers: writers stay with a server, and no request fails when servers leave."""

import asyncio
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest
from seqserve import AsyncClient, Client, Retries

from tests.deploy.nginx import NGINX, proxied
from tests.e2e.clients import TIMEOUT_S, Metrics
from tests.e2e.conftest import serving

SERVERS: Final = 3
WRITERS: Final = 9
TEXT: Final = "shares of new york banks rose in the market says a trading company it was".split()
DOCUMENT: Final = "the company said profits rose " * 50  # most requests in flight are of this kind
PROGRESS: Final = 4  # answers of each writer
ONCE: Final = Retries(attempts=1)  # the proxy retries, not the client

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(300),  # nine starts of a server
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: Debian package nginx-light"),
]


class Cluster:
    """Servers of one store, each at a port of its own."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._running = [ExitStack() for _ in range(SERVERS)]
        self.processes: list[subprocess.Popen[str]] = []
        self.urls: list[httpx.URL] = []
        for stack in self._running:
            client, process = stack.enter_context(serving(store))
            self.urls.append(client.base_url)
            self.processes.append(process)

    @property
    def ports(self) -> list[int]:
        return [url.port or 0 for url in self.urls]

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over the servers."""
        return sum(Metrics(url)(name, **labels) for url in self.urls)

    def restart(self, index: int) -> None:
        """Stop a server by SIGTERM, and wait until its successor at the same port is ready."""
        self._running[index].close()
        assert self.processes[index].returncode == 0
        _, self.processes[index] = self._running[index].enter_context(
            serving(self._store, SEQSERVE_PORT=str(self.ports[index]))
        )

    def close(self) -> None:
        for stack in self._running:
            stack.close()


@pytest.fixture
def cluster(tiny_store: Path) -> Iterator[Cluster]:
    servers = Cluster(tiny_store)
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture
def url(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """The URL of the proxy of `cluster`."""
    with proxied(cluster.ports, tmp_path) as url:
        yield url


class Load:
    """Writers that type and score without a pause; a request that fails ends the test."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._answers = Counter[int]()  # by writer
        self._answered = asyncio.Condition()
        self.stopped = False

    async def write(self, writer: int) -> None:
        async with AsyncClient(self._url, retries=ONCE) as client:
            while not self.stopped:
                for length in range(1, len(TEXT) + 1):
                    await client.next_word(" ".join(TEXT[:length]))
                    await client.perplexity(DOCUMENT)
                    async with self._answered:
                        self._answers[writer] += 2
                        self._answered.notify_all()

    async def proceed(self) -> None:
        """Wait until every writer has had PROGRESS more answers."""
        targets = {writer: self._answers[writer] + PROGRESS for writer in range(WRITERS)}
        async with asyncio.timeout(TIMEOUT_S), self._answered:
            await self._answered.wait_for(lambda: all(self._answers[one] >= due for one, due in targets.items()))


@asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    """Load meanwhile, from before the first statement to after the last."""
    load = Load(url)
    async with asyncio.TaskGroup() as writers:
        for writer in range(WRITERS):
            writers.create_task(load.write(writer))
        await load.proceed()
        yield load
        await load.proceed()
        load.stopped = True


def type_through(url: str, words: list[str], *, roaming: bool) -> list[int]:
    """Return the tokens read for each keystroke of writers who type the words in turns, each from another start.

    A `roaming` writer has another session for each keystroke.
    """
    read = []
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(url, retries=ONCE)) for _ in range(WRITERS)]
        for length in range(1, len(words) + 1):
            for writer in range(WRITERS):
                text = [*words[writer:], *words[:writer]][:length]
                answer = clients[(writer + roaming * length) % WRITERS].next_word(" ".join(text))
                read.append(answer.context_tokens - answer.cached_tokens)
    return read


def test_a_writers_keystroke_reads_one_token_and_one_of_another_session_more(cluster: Cluster, url: str) -> None:
    before = cluster.metric("cache_tokens_total", source="read")
    read = type_through(url, TEXT, roaming=False)
    assert read == [1] * len(TEXT) * WRITERS
    assert cluster.metric("cache_tokens_total", source="read") - before == len(read)
    assert sum(type_through(url, TEXT[::-1], roaming=True)) > 1.5 * len(read)


async def test_no_request_fails_when_a_server_is_killed(cluster: Cluster, url: str) -> None:
    async with load(url):
        cluster.processes[1].kill()
        await asyncio.to_thread(cluster.processes[1].wait)


async def test_no_request_fails_during_a_rolling_restart(cluster: Cluster, url: str) -> None:
    async with load(url) as writers:
        for index in range(SERVERS):
            await asyncio.to_thread(cluster.restart, index)
            await writers.proceed()


async def test_the_first_event_of_a_stream_arrives_before_the_second_is_sent(tmp_path: Path) -> None:
    arrived = asyncio.Event()
    first, second = b"event: word\ndata: 1\n\n", b"event: word\ndata: 2\n\n"

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as the server does."""
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (len(first), first))
        await arrived.wait()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(second), second))
        await writer.drain()
        writer.close()

    upstream = await asyncio.start_server(stream, "127.0.0.1", 0)
    received = b""
    async with upstream, asyncio.timeout(TIMEOUT_S), httpx.AsyncClient() as client:
        with proxied([upstream.sockets[0].getsockname()[1]], tmp_path) as url:
            async with client.stream("GET", f"{url}/captions") as response:
                async for part in response.aiter_raw():
                    received += part
                    if received == first:
                        arrived.set()
    assert received == first + second


def test_without_a_server_the_answer_says_retry(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with proxied([port], tmp_path) as url:
        response = httpx.post(f"{url}/next-word", json={"text": "the"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.json()["type"] == "/problems/not-ready"
