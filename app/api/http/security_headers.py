"""Security headers of responses (OWASP REST security cheat sheet)."""

import hashlib
import re
from base64 import b64encode
from typing import Final, TypeAlias

Header: TypeAlias = tuple[bytes, bytes]

# Defaults of every response; the page and the documentation have policies of their own.
HEADERS: Final = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
NAMES: Final = frozenset(name for name, _ in HEADERS)
INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def documentation_policy(page: bytes) -> str:
    """Return the Content-Security-Policy of Swagger UI: own files, inline scripts by hash, inline styles."""
    hashes = [b64encode(hashlib.sha256(script).digest()).decode() for script in INLINE_SCRIPT.findall(page)]
    scripts = " ".join(["'self'", *(f"'sha256-{found}'" for found in hashes)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
