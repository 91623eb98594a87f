"""Callers with a connection of their own each: a test knows what was sent when, and how it ended."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: httpx.Headers
    content: bytes
    sent: float  # when the request's last byte was handed over, a time of time.monotonic
    seconds: float  # from then to the answer's last byte

    def json(self) -> Any:
        return json.loads(self.content)


class Caller:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent = 0.0

    async def send(self, path: str, body: dict[str, Any], **headers: str) -> None:
        """Hand over a whole request."""
        content = json.dumps(body).encode()
        fields = {"Host": "e2e", "Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
        head = [f"POST {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
        self.sent = time.monotonic()  # as far as is known if the connection has ended already
        self._writer.write("\r\n".join([*head, "", ""]).encode() + content)
        await self._writer.drain()
        self.sent = time.monotonic()

    async def answer(self) -> Answer:
        """The answer to what was sent. Raise ConnectionError if the connection ends without a whole one."""
        try:
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = httpx.Headers(dict(line.split(": ", 1) for line in lines[1:-2]))
            content = await self._reader.readexactly(int(headers["content-length"]))
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"closed after {len(error.partial)} bytes") from error
        return Answer(int(lines[0].split()[1]), headers, content, self.sent, time.monotonic() - self.sent)

    async def ask(self, path: str, body: dict[str, Any], **headers: str) -> Answer:
        await self.send(path, body, **headers)
        return await self.answer()

    def leave(self) -> None:
        """Without waiting for anything."""
        self._writer.close()


@asynccontextmanager
async def callers(url: httpx.URL, count: int) -> AsyncIterator[list[Caller]]:
    """So many, connected."""
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(Caller(*await asyncio.open_connection(url.host, url.port)))
            stack.callback(found[-1].leave)
        yield found


async def ask_anew(url: httpx.URL, path: str, body: dict[str, Any], **headers: str) -> Answer:
    """Over a connection of its own."""
    async with callers(url, 1) as (caller,):
        return await caller.ask(path, body, **headers)


class Figures:
    """A server's metrics."""

    def __init__(self, url: httpx.URL) -> None:
        self._url = url.join("/metrics")

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        rows = re.findall(rf"^seqserve_{name}(?:{{(.*)}})? (\S+)$", httpx.get(self._url).text, re.MULTILINE)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for found, value in rows if all(one in found.split(",") for one in wanted))


async def until(true: Callable[[], bool]) -> None:
    """Wait; what is asked takes its time, so nothing spins."""
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(true):
            pass
