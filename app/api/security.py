"""Headers that tell browsers to be careful with what the server says (OWASP's REST security cheat sheet)."""

import hashlib
import re
from base64 import b64encode
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Where a response does not say otherwise: the page and the documentation have policies of their own.
HEADERS: Final = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def documentation_policy(page: bytes) -> str:
    """The Content-Security-Policy of Swagger UI: our own files, its inline scripts by their hash, its inline styles."""
    hashes = [b64encode(hashlib.sha256(script).digest()).decode() for script in INLINE_SCRIPT.findall(page)]
    scripts = " ".join(["'self'", *(f"'sha256-{found}'" for found in hashes)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Secured:
    """Every response has HEADERS."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add to one response what it does not say itself."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = message.get("headers", ())
                names = {name.lower() for name, _ in told}
                message["headers"] = [*told, *(pair for pair in HEADERS if pair[0] not in names)]
            await send(message)

        await self.app(scope, receive, send_secured)
