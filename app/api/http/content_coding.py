"""Content codings of request bodies (RFC 9110, 8.4): decoded as they arrive, in small pieces."""

import asyncio
import zlib
from typing import Final

from starlette.types import Message, Receive

from app.errors import Malformed, TooLarge, UnsupportedType

CODINGS: Final = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
ACCEPTED: Final = "gzip, deflate"
PIECE_BYTES: Final = 2**16  # decoded at once, in about 0.2 ms


def decoded(receive: Receive, content_encoding: bytes, max_bytes: int) -> Receive:
    """Wrap `receive`: decode a body that is compressed, of at most `max_bytes` before and after.

    The wrapper raises TooLarge for more, Malformed for another content. Raise UnsupportedType for an unknown coding.
    """
    coding = content_encoding.decode("latin-1").strip().lower()
    if coding in ("", "identity"):
        return receive
    if coding not in CODINGS:
        raise UnsupportedType(f"Content-Encoding: expected {ACCEPTED} or identity, found {coding[:40]!r}", ACCEPTED)
    decoder = zlib.decompressobj(CODINGS[coding])
    pending, more, full = b"", True, False  # not decoded yet; more to receive; more is decoded than a piece holds
    sizes = {"before": 0, "after": 0}

    def count(when: str, size: int) -> None:
        sizes[when] += size
        if sizes[when] > max_bytes:
            raise TooLarge(f"body: expected at most {max_bytes} bytes {when} decompression, found more")

    async def receive_decoded() -> Message:
        nonlocal pending, more, full
        if pending or full:
            await asyncio.sleep(0)  # other requests are served between two pieces
        else:
            message = await receive()
            if message["type"] != "http.request":
                return message
            pending, more = message.get("body", b""), message.get("more_body", False)
            count("before", len(pending))
        try:
            piece = decoder.decompress(pending, PIECE_BYTES)
        except zlib.error as error:
            raise Malformed(f"body: expected {coding}, found otherwise: {error}") from error
        count("after", len(piece))
        pending, full = decoder.unconsumed_tail, len(piece) == PIECE_BYTES
        if decoder.unused_data or not (decoder.eof or more or pending or full):
            found = "more" if decoder.unused_data else "less"
            raise Malformed(f"body: expected one whole {coding} stream, found {found}")
        return {"type": "http.request", "body": piece, "more_body": bool(more or pending or full)}

    return receive_decoded
