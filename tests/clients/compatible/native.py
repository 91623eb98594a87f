"""The native API, with which the answers of other clients are compared, and images to send."""

import json
import struct
import urllib.request
import zlib
from typing import Any

from .conftest import Server


def png(rows: list[list[int]]) -> bytes:
    """Return a grey image as PNG."""
    raw = b"".join(b"\0" + bytes(row) for row in rows)
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    encoded = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


ONE_ROWS = [[0 if 60 < y < 220 and 128 < x < 150 else 255 for x in range(280)] for y in range(280)]
ONE = png(ONE_ROWS)
SCENE = png([[(x * 255 // 320 + y) % 256 if y > 90 else 210 for x in range(320)] for y in range(240)])


def post(server: Server, path: str, body: Any) -> Any:
    """Return the answer to JSON, or to an image."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {
        "Authorization": f"Bearer {server.key}",
        "Content-Type": "image/png" if isinstance(body, bytes) else "application/json",
    }
    with urllib.request.urlopen(urllib.request.Request(server.url + path, content, headers)) as answer:  # noqa: S310
        return json.load(answer)


def perplexity(server: Server, text: str) -> Any:
    """Return the score of a text."""
    return post(server, "/perplexity", {"model": "ptb", "text": text})["results"][0]
