"""Content that stays as it is while the server lives: sent once, then confirmed (RFC 9110, 8.8.3 and 13.1.2)."""

from collections.abc import Callable, Mapping

from fastapi import Request
from starlette.responses import Response


def answer(
    request: Request, read: Callable[[], bytes], media_type: str, digest: str, headers: Mapping[str, str] | None = None
) -> Response:
    """What `read` gives, or a 304 if the caller has it already: `digest` names the content.

    A browser may keep it, and asks each time whether it is still the same.
    """
    etag = f'"{digest}"'
    kept = {"ETag": etag, "Cache-Control": "no-cache", **(headers or {})}
    if _has(request.headers.getlist("if-none-match"), etag):
        return Response(status_code=304, headers=kept)
    return Response(read(), media_type=media_type, headers=kept)


def _has(told: list[str], etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for line in told for tag in line.split(",")]
    return etag in tags or "*" in tags
