"""Responses with immutable content and an ETag (RFC 9110, 8.8.3 and 13.1.2)."""

from collections.abc import Callable, Mapping

from fastapi import Request
from starlette.responses import Response


def answer(
    request: Request, read: Callable[[], bytes], media_type: str, digest: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the content of `read`, or 304 if the client has it already; `digest` is the ETag.

    Browsers may cache the content but revalidate it each time.
    """
    etag = f'"{digest}"'
    cache_headers = {"ETag": etag, "Cache-Control": "no-cache", **(headers or {})}
    sent = (tag for line in request.headers.getlist("if-none-match") for tag in line.split(","))
    if not {etag, "*"}.isdisjoint(tag.strip().removeprefix("W/") for tag in sent):
        return Response(status_code=304, headers=cache_headers)
    return Response(read(), media_type=media_type, headers=cache_headers)
