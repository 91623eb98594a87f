"""The checkpoint format: write, verify, read.

    models_store/<model>/<version>/manifest.json    what the bundle is, and the size and sha256 of every other file
    models_store/<model>/<version>/manifest.sha256  the sha256 of manifest.json, as `sha256sum` writes it
    models_store/<model>/CURRENT                    one line: the version served

A bundle is created atomically, by one rename, and is immutable. Every file is verified before any is used. Files that
the manifest does not list are ignored: they can't be reached through a `Bundle`, and a note or a `.DS_Store` beside the
weights does not prevent serving. A bundle without manifest.sha256, published before there was one, is read with a
warning.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from app.errors import BundleError
from app.manifest import FORMAT, MANIFEST, NAME, SEAL, FileEntry, Manifest, file_name, store_name

CURRENT = "CURRENT"

_MANIFEST_LIMIT = 1 << 20  # bytes; a manifest is a few thousand
_CURRENT_LIMIT = _SEAL_LIMIT = 256  # bytes
_CHUNK = 1 << 20  # bytes copied at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; only the files that its manifest lists can be reached."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return the file's path. Raise BundleError unless the manifest lists it."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder / MANIFEST}: expected a file {name} in the list, found none")
        return self.folder / name

    def content(self, name: str) -> bytes:
        """Return the file's bytes. Raise BundleError if it can't be read any more."""
        path = self.path(name)
        with _reading(path):
            return path.read_bytes()

    def text(self, name: str) -> str:
        """Return the file's text with its line breaks unchanged. Raise BundleError unless it is UTF-8."""
        return _text(self.path(name), self.manifest.files[name].bytes)

    def json(self, name: str) -> Any:
        """Return the file's JSON value. Raise BundleError unless it is JSON."""
        return _json(self.path(name), self.manifest.files[name].bytes)


def publish(store: Path, manifest: Manifest, contents: Mapping[str, bytes | Path]) -> Path:
    """Write a new version, make it the current one and return its folder.

    The manifest's list of files is made here from `contents` (file name -> bytes, or a file to copy). A crash at any
    moment leaves the store valid: the version is absent or complete, and CURRENT names the old or the new. Raise
    BundleError if the version exists already or is invalid.
    """
    require_unpublished(store, manifest.model, manifest.version)
    names = [file_name(name) for name in contents]
    home = store / manifest.model
    folder = home / manifest.version
    home.mkdir(parents=True, exist_ok=True)
    staging = home / f".staging-{secrets.token_hex(8)}"
    staging.mkdir()
    try:
        files = {name: _write(staging / name, contents[name]) for name in names}
        listed = manifest.model_copy(update={"files": files})
        written = _write(staging / MANIFEST, (listed.model_dump_json(indent=2) + "\n").encode())
        _write(staging / SEAL, _seal(written.sha256).encode())
        _verify(staging, _manifest(staging / MANIFEST))
        _sync(staging)
        staging.rename(folder)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):  # of two concurrent publishers of one version the second gets this error
            require_unpublished(store, manifest.model, manifest.version)
        raise
    _sync(home)
    _sync(store)
    activate(store, manifest.model, manifest.version)
    return folder


def require_unpublished(store: Path, model: str, version: str) -> None:
    """Raise BundleError if the version exists already, as `publish` does; for a check before long work."""
    folder = _inside(_inside(store, model), version)
    if os.path.lexists(folder):
        raise BundleError(f"{folder}: expected an unpublished version, found a published one; versions are immutable")


def read(folder: Path) -> Bundle:
    """Verify every byte of the bundle in `folder` and return it.

    Raise BundleError that names the file, what was expected and what was found.
    """
    folder = folder.absolute()
    manifest = _manifest(folder / MANIFEST)
    expected, found = f"{folder.parent.name}/{folder.name}", f"{manifest.model}/{manifest.version}"
    if found != expected:
        raise BundleError(f"{folder / MANIFEST}: expected model and version {expected}, as its folder, found {found}")
    _verify(folder, manifest)
    return Bundle(folder, manifest)


def models(store: Path) -> list[str]:
    """Return the names of the store's models, sorted. Raise BundleError if there is no such folder.

    Includes models without a valid CURRENT, so that they can be rejected by name.
    """
    names = _folders(store)
    return [name for name in names if versions(store, name) or os.path.lexists(store / name / CURRENT)]


def versions(store: Path, model: str) -> list[str]:
    """Return the model's versions on disk, sorted, valid or not. Raise BundleError if there is no such model."""
    return _folders(_inside(store, model))


def current(store: Path, model: str) -> str:
    """Return the version that CURRENT names. Raise BundleError unless it exists."""
    path = _inside(store, model) / CURRENT
    known = versions(store, model)
    found = _text(path, _CURRENT_LIMIT)
    version = re.sub(r"\r?\n\Z", "", found)
    if version not in known:
        raise BundleError(f"{path}: expected one line that names one of {known}, found {found!r}")
    return version


def activate(store: Path, model: str, version: str) -> None:
    """Make `version` the current one, atomically. Raise BundleError if it does not exist, OSError on failure."""
    home = _inside(store, model)
    known = versions(store, model)
    if version not in known:
        raise BundleError(f"{home}: expected one of the versions {known}, found {version!r}")
    staged = home / f".{CURRENT}-{secrets.token_hex(8)}"
    try:
        _write(staged, f"{version}\n".encode())
        staged.replace(home / CURRENT)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    _sync(home)


def _verify(folder: Path, manifest: Manifest) -> None:
    """Verify the checksums of the manifest and of every listed file, and their sizes."""
    found = _sha256(folder / MANIFEST)
    if not os.path.lexists(folder / SEAL):
        log.warning("%s: expected a file %s, found none: changes of the manifest go unnoticed", folder, SEAL)
    elif (expected := _text(folder / SEAL, _SEAL_LIMIT)) != _seal(found):
        raise BundleError(f"{folder / MANIFEST}: expected the sha256 in {SEAL}, {_short(expected)}, found {found}")
    for name, entry in manifest.files.items():
        path = folder / name
        size = _size(path)
        if size != entry.bytes:
            raise BundleError(f"{path}: expected {entry.bytes} bytes, found {size}")
        if (found := _sha256(path)) != entry.sha256:
            raise BundleError(f"{path}: expected sha256 {entry.sha256}, found {found}")


def _seal(sha256: str) -> str:
    """Return the content of manifest.sha256."""
    return f"{sha256}  {MANIFEST}\n"


def _sha256(path: Path) -> str:
    with _reading(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifest(path: Path) -> Manifest:
    """Parse and validate a manifest, its format number first: all other fields depend on it."""
    document = _json(path, _MANIFEST_LIMIT)
    if not isinstance(document, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(document).__name__}")
    number = document.get("format")
    if type(number) is not int or number != FORMAT:
        raise BundleError(f"{path}: format: expected {FORMAT}, found {_short(number)}")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        errors = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {_short(e['input'])}" for e in error.errors()]
        raise BundleError(f"{path}: {'; '.join(errors[:5])}") from error


def _json(path: Path, limit: int) -> Any:
    text = _text(path, limit)
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: expected JSON, found an error: {error}") from error


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"expected a JSON number, found {name}")


def _text(path: Path, limit: int) -> str:
    size = _size(path)
    if size > limit:
        raise BundleError(f"{path}: expected at most {limit} bytes, found {size}")
    with _reading(path), path.open("rb") as stream:
        content = stream.read(limit)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: expected UTF-8, found byte {content[error.start]:#04x} at {error.start}") from error


def _size(path: Path) -> int:
    """Return the size of a plain file; reject links, which may lead out of the store."""
    with _reading(path):
        status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: expected a plain file, found {stat.filemode(status.st_mode)}")
    return status.st_size


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert an OSError into a BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path}: can't be read: {error.strerror}") from error


def _inside(parent: Path, name: str) -> Path:
    """Return a model's or version's folder. Raise BundleError for a name that could lead elsewhere."""
    try:
        return parent / store_name(name)
    except ValueError as error:
        raise BundleError(f"{parent}: {error}") from error


def _folders(parent: Path) -> list[str]:
    """Return the names of folders with a valid name, without links and staging folders."""
    with _reading(parent), os.scandir(parent) as entries:
        return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and NAME.fullmatch(e.name))


def _write(path: Path, content: bytes | Path) -> FileEntry:
    """Write a new file and flush it to disk; return its size and sha256."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as stream, BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
        while chunk := source.read(_CHUNK):
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return FileEntry(sha256=digest.hexdigest(), bytes=size)


def _sync(folder: Path) -> None:
    """Flush the folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
