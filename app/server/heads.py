"""Validation of request heads below HTTP semantics (RFC 9112), and the responses to rejected requests."""

import re
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, TypeAlias

from app.api.http import problems, security_headers

MAX_HEAD_BYTES: Final = 32 * 1024  # request line and headers
MAX_HEADERS: Final = 100
VERSIONS: Final = ("1.0", "1.1")
ABSOLUTE_FORM: Final = re.compile(rb"(?i:https?)://([^/?#@]+)(/[^#]*)?")

Fields: TypeAlias = list[tuple[bytes, bytes]]


class Rejection(Exception):
    """An error response, after which the connection closes."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}

    def response(self) -> bytes:
        """Return a complete HTTP/1.1 response with a problem document."""
        headers = {"Connection": "close", "X-Request-Id": uuid.uuid4().hex, **self.headers}
        problem = problems.DOCUMENTS.respond(problems.Report(problems.blank(self.status), self.detail, headers))
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}".encode()]
        lines += [name + b": " + value for name, value in (*problem.raw_headers, *security_headers.HEADERS)]
        return b"\r\n".join([*lines, b"", bytes(problem.body)])


def invalid(detail: str = "expected a valid HTTP request") -> Rejection:
    """Return the response to a malformed request."""
    return Rejection(HTTPStatus.BAD_REQUEST, detail)


def too_large() -> Rejection:
    """Return the response to a head over the limits."""
    detail = f"expected a head of at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} fields, found more"
    return Rejection(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)


def unavailable(detail: str) -> Rejection:
    """Return the response of a server that may take the request again in a second."""
    return Rejection(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "1"})


def require_fields(version: str, fields: Fields) -> None:
    """Raise Rejection unless there is one Host (RFC 9112, 3.2) and no transfer coding but chunked, in 1.1 (6.1)."""
    names = [name for name, _ in fields]
    hosts = names.count(b"host")
    if version not in VERSIONS:  # HTTP/0.9 responses have neither status nor length
        raise invalid()
    if hosts != 1 and version == "1.1":
        raise invalid(f"Host: expected one field, found {hosts}")
    if b"transfer-encoding" not in names:
        return
    if version != "1.1":
        raise invalid(f"Transfer-Encoding: expected none in HTTP/{version}, found one")
    joined = b",".join(value for name, value in fields if name == b"transfer-encoding")
    codings = [coding.strip().lower() for coding in joined.split(b",")]
    if codings[-1] == b"chunked" and len(codings) > 1:
        raise Rejection(HTTPStatus.NOT_IMPLEMENTED, "Transfer-Encoding: expected no coding but chunked")


def origin_form(target: bytes, fields: Fields) -> bytes:
    """Return the path and query of a target in absolute form, whose authority replaces Host (RFC 9112, 3.2.2)."""
    found = ABSOLUTE_FORM.fullmatch(target)
    if not found:
        raise invalid("target: expected /path or http://host/path, found otherwise")
    fields[:] = [*((name, value) for name, value in fields if name != b"host"), (b"host", found[1])]
    return found[2] or b"/"
