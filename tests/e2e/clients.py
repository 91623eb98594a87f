"""Raw HTTP/1.1 clients, one connection each, with the times at which requests were sent."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Response:
    """A complete response."""

    status: int
    headers: httpx.Headers
    content: bytes
    sent: float  # time.monotonic() after the request's last byte was written
    seconds: float  # from then to the response's last byte

    def json(self) -> Any:
        return json.loads(self.content)


class Connection:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent = 0.0

    async def send(self, path: str, body: dict[str, Any], **headers: str) -> None:
        """Send a complete request."""
        content = json.dumps(body).encode()
        fields = {"Host": "e2e", "Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
        head = [f"POST {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
        self.sent = time.monotonic()  # kept if the connection is already closed
        self._writer.write("\r\n".join([*head, "", ""]).encode() + content)
        await self._writer.drain()
        self.sent = time.monotonic()

    async def response(self) -> Response:
        """Read the response. Raise ConnectionError if the connection closes before it is complete."""
        try:
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = httpx.Headers(dict(line.split(": ", 1) for line in lines[1:-2]))
            content = await self._reader.readexactly(int(headers["content-length"]))
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"closed after {len(error.partial)} bytes") from error
        return Response(int(lines[0].split()[1]), headers, content, self.sent, time.monotonic() - self.sent)

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> Response:
        await self.send(path, body, **headers)
        return await self.response()

    def disconnect(self) -> None:
        """Close the connection without waiting."""
        self._writer.close()

    async def close(self) -> None:
        """Close the connection and wait until it is: a stopped server waits for its clients."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connections(url: httpx.URL, count: int) -> AsyncIterator[list[Connection]]:
    """Open `count` connections to an address, or to the Unix socket of `unix:path`."""
    async with asyncio.timeout(TIMEOUT_S), AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            streams = (
                asyncio.open_unix_connection(url.path.rstrip("/"))
                if url.scheme == "unix"
                else asyncio.open_connection(url.host, url.port)
            )
            opened.append(Connection(*await streams))
            stack.push_async_callback(opened[-1].close)
        yield opened


async def post_once(url: httpx.URL, path: str, body: dict[str, Any], **headers: str) -> Response:
    """Send one request over a new connection."""
    async with connections(url, 1) as (connection,):
        return await connection.post(path, body, **headers)


class Metrics:
    """The metrics of a server."""

    def __init__(self, url: httpx.URL) -> None:
        self._url = url.join("/metrics")

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with this name and these labels."""
        rows = re.findall(rf"^seqserve_{name}(?:{{(.*)}})? (\S+)$", httpx.get(self._url).text, re.MULTILINE)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for found, value in rows if all(one in found.split(",") for one in wanted))


async def wait_until(condition: Callable[[], bool]) -> None:
    """Poll a condition that blocks on the server, in a thread."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await asyncio.to_thread(condition):
            pass
