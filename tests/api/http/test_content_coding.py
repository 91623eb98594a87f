"""Compressed request bodies."""

import asyncio
import gzip
import json
import os
import zlib
from collections.abc import Callable

import pytest
from starlette.types import Message, Receive

from app.api.http.content_coding import PIECE_BYTES, decoded
from app.errors import Malformed, SeqserveError, TooLarge
from tests.api.conftest import FakeServed, connect, service

pytestmark = pytest.mark.anyio
Compress = Callable[[bytes], bytes]
BODY = json.dumps({"text": "the company said " * 1000}).encode()
JSON = {"Content-Type": "application/json"}
CODINGS = pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("X-Gzip", gzip.compress), ("deflate", zlib.compress)]
)


def receiving(content: bytes, size: int) -> Receive:
    """Return the `receive` of a body that arrives in pieces of `size` bytes."""
    pieces = [content[start : start + size] for start in range(0, len(content), size)] or [b""]

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    return receive


async def read(receive: Receive) -> list[bytes]:
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message["body"])
        more = message["more_body"]
    return pieces


@CODINGS
@pytest.mark.parametrize("path", ["/next-word", "/perplexity"])
async def test_a_compressed_body_is_read(served: FakeServed, coding: str, compress: Compress, path: str) -> None:
    async with connect(service(served)) as client:
        response = await client.post(path, content=compress(BODY), headers={**JSON, "Content-Encoding": coding})
        plain = await client.post(path, content=BODY, headers=JSON)
    assert (response.status_code, response.json()) == (200, plain.json())


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "utf-8", "\xff"])
@pytest.mark.parametrize("path", ["/next-word", "/digits"])
async def test_another_coding_is_unsupported_and_named(served: FakeServed, coding: str, path: str) -> None:
    kind = "image/png" if path == "/digits" else "application/json"
    headers = {b"Content-Type": kind.encode(), b"Content-Encoding": coding.encode("latin-1")}
    async with connect(service(served)) as client:
        response = await client.post(path, content=b"{}", headers=headers)
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert response.json()["detail"] == f"Content-Encoding: expected gzip, deflate or identity, found {coding!r}"


@CODINGS
@pytest.mark.parametrize("size", [1, 7, 10_000_000])
@pytest.mark.parametrize("length", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES])
async def test_a_body_is_decoded_in_pieces(coding: str, compress: Compress, size: int, length: int) -> None:
    content = os.urandom(min(length, 100)) + bytes(max(0, length - 100))
    pieces = await read(decoded(receiving(compress(content), size), coding.encode(), 2**20))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= PIECE_BYTES


@pytest.mark.parametrize(
    ("content", "error", "found"),
    [
        (gzip.compress(bytes(1001)), TooLarge, "at most 1000 bytes after decompression, found more"),
        (gzip.compress(bytes(2**19)), TooLarge, "at most 1000 bytes after decompression, found more"),
        (gzip.compress(os.urandom(1100)), TooLarge, "at most 1000 bytes before decompression, found more"),
        (gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 400, TooLarge, "before decompression"),
        (gzip.compress(b"a")[:-1], Malformed, "expected one whole gzip stream, found less"),
        (b"", Malformed, "expected one whole gzip stream, found less"),
        (gzip.compress(b"a") + b"b", Malformed, "expected one whole gzip stream, found more"),
        (gzip.compress(b"a") * 2, Malformed, "expected one whole gzip stream, found more"),
        (b'{"text": "a"}', Malformed, "expected gzip, found otherwise: "),
        (gzip.compress(b"a")[:-5] + bytes(5), Malformed, "expected gzip, found otherwise: "),
    ],
    ids=range(10),  # gzip's header has the time
)
@pytest.mark.parametrize("size", [1, 1000, 10_000_000])
async def test_a_bomb_or_a_damaged_body_is_rejected(
    content: bytes, size: int, error: type[SeqserveError], found: str
) -> None:
    with pytest.raises(error, match=found):
        await read(decoded(receiving(content, size), b"gzip", 1000))


async def test_other_requests_are_served_while_a_body_is_decoded() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    await read(decoded(receiving(gzip.compress(bytes(100 * PIECE_BYTES)), 2**30), b"gzip", 2**30))
    task.cancel()
    assert turns >= 100
