"""API keys: a file with one key a line (name, scope, expiry, hash), reloaded when it changes.

A key is 256 random bits: its sha256 reveals nothing and needs neither a salt nor a slow hash. A line is
`name scope expiry sha256:digest`, with `-` for a key that never expires; a line that starts with `#` is a comment.
Deleting a line revokes its key.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from app.errors import SettingsError

KeyScope: TypeAlias = Literal["predict", "admin"]  # admin includes predict

PREFIX: Final = "seqserve_"  # lets scanners for leaked secrets recognise a key
SECRET_BYTES: Final = 32
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
NEVER: Final = "-"
MODE: Final = 0o600
RELOAD_S: Final = 1.0

log = logging.getLogger(__name__)


def _today() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Key:
    """One line of the file. Only the hash is stored; the key itself is known to its owner alone."""

    name: str
    scope: KeyScope
    expires: datetime | None
    digest: bytes  # sha256 of the key

    def allows(self, needed: KeyScope) -> bool:
        """Return whether the key's scope covers `needed`."""
        return self.scope in ("admin", needed)

    def line(self) -> str:
        """Return the key's line in the file."""
        expires = self.expires.isoformat() if self.expires else NEVER
        return f"{self.name} {self.scope} {expires} sha256:{self.digest.hex()}"


class Keys:
    """The keys of a file. Deleting a line revokes the key within a second, without a restart.

    Of a changed file the valid lines are in force, whatever the others hold. A file that can't be read, or has no valid
    line but invalid ones, leaves the last keys in force. Both are logged and reported as stale.
    """

    def __init__(
        self,
        file: Path,
        now: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = _today,
        report_stale: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Read the file. Raise SettingsError if it can't be read or has an invalid line.

        `report_stale` is called after each reload: True if the file does not say all that is in force, or more.
        """
        self._file = file
        self._now = now
        self._today = today
        self._report_stale = report_stale
        self._checked = now()
        self._seen = _state(file)
        self._keys = _by_digest(read(file))

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, sent: str) -> Key | None:
        """Return the key with this secret, or None. Hashes are looked up and compared, so timing reveals nothing."""
        self._reload_if_changed()
        digest = _digest(sent)
        key = self._keys.get(digest)
        return key if key and hmac.compare_digest(key.digest, digest) else None

    def expired(self, key: Key) -> bool:
        """Return whether the key has expired."""
        return key.expires is not None and key.expires <= self._today()

    def _reload_if_changed(self) -> None:
        """Reload the file if it changed; check at most every RELOAD_S seconds."""
        now = self._now()
        if now - self._checked < RELOAD_S:
            return
        self._checked = now
        seen = _state(self._file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            keys, errors = _parse(self._file)
        except SettingsError as error:
            keys, errors = [], [error]
        for each in errors:
            log.error("%s", each)
        if errors and not keys:
            log.error("%s: the keys loaded before stay in force", self._file)
        else:
            self._keys = _by_digest(keys)
            log.info("%s: %d keys are in force", self._file, len(self))
        self._report_stale(bool(errors))


def create(
    file: Path,
    name: str,
    scope: KeyScope,
    expires: datetime | None,
    today: Callable[[], datetime] = _today,
) -> str:
    """Return a new key's secret; append its hash to `file`, which is created with MODE if missing.

    Raise SettingsError if the name is invalid or taken, the expiry has passed, or the file can't be read or written.
    """
    if expires and expires <= today():
        raise SettingsError(f"expires: expected a time in the future, found {expires.isoformat()}")
    if not NAME.fullmatch(name):
        expected = "a name of up to 64 letters, digits, dots, dashes and underscores"
        raise SettingsError(f"name: expected {expected}, found {name[:80]!r}")
    if file.exists() and name in {key.name for key in read(file)}:
        raise SettingsError(f"{file}: there is a key named {name} already; delete its line to revoke it")
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    _append(file, Key(name, scope, expires, _digest(secret)).line())
    return secret


def read(file: Path) -> list[Key]:
    """Return all keys of the file, expired ones too. Raise SettingsError if it can't be read or a line is invalid."""
    keys, errors = _parse(file)
    if errors:
        raise errors[0]
    return keys


def moment(text: str) -> datetime:
    """Parse an ISO 8601 date or time, in UTC if it names no zone. Raise ValueError if it is invalid."""
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _parse(file: Path) -> tuple[list[Key], list[SettingsError]]:
    """Return the keys of the valid lines, and the errors of the others. Raise SettingsError if it can't be read."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise SettingsError(f"{file}: the keys can't be read: {error}") from error
    keys, errors = list[Key](), list[SettingsError]()
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith(b"#"):
            try:
                key = _key(line, f"{file}:{number}")
                _require_distinct(file, "name", key.name, [other.name for other in keys])
                _require_distinct(file, "hash", key.digest.hex(), [other.digest.hex() for other in keys])
                keys.append(key)
            except SettingsError as error:
                errors.append(error)
    return keys, errors


def _key(line: bytes, location: str) -> Key:
    try:
        columns = line.decode().split()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{location}: the line can't be read: {error}") from error
    match columns:
        case [name, "predict" | "admin" as scope, expires, digest] if NAME.fullmatch(name) and DIGEST.fullmatch(digest):
            try:
                until = None if expires == NEVER else moment(expires)
            except ValueError as error:
                raise SettingsError(
                    f"{location}: expected an ISO 8601 time or {NEVER}, found {expires[:80]!r}"
                ) from error
            return Key(name, scope, until, bytes.fromhex(digest.removeprefix("sha256:")))
    scopes = " or ".join(get_args(KeyScope))
    raise SettingsError(f"{location}: expected a name, {scopes}, an expiry or {NEVER}, and sha256:…, found otherwise")


def _require_distinct(file: Path, what: str, value: str, others: Sequence[str]) -> None:
    if value in others:
        raise SettingsError(f"{file}: expected each {what} once, found {value} again")


def _append(file: Path, line: str) -> None:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, MODE)
        with os.fdopen(descriptor, "rb+") as stream:
            content = stream.read()
            begin = "\n" if content and not content.endswith(b"\n") else ""
            stream.write(f"{begin}{line}\n".encode())
    except OSError as error:
        raise SettingsError(f"{file}: the key can't be written: {error.strerror}") from error


def _by_digest(keys: Iterable[Key]) -> dict[bytes, Key]:
    return {key.digest: key for key in keys}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()


def _state(file: Path) -> tuple[int, int, int] | None:
    """Return the modification time, size and inode of the file, or None if it is missing."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
