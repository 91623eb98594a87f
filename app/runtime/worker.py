"""One of several worker processes: its models and its message channel to the supervisor, which rolls out versions.

Messages are JSON objects with a `kind` and the `number` of the rollout or request that they belong to:

    started, failed      worker -> supervisor    the models are served; start-up failed (`error`)
    activate             worker -> supervisor    serve `version` of `model` in all workers; `save`: after a restart too
    stage                supervisor -> worker    load and verify that version
    switch, drop         supervisor -> worker    serve the staged version; discard it
    reload               supervisor -> worker    SIGHUP was received
    done                 either                  reply to activate, stage and switch: `error`, `previous`, `unsaved`
"""

import asyncio
import itertools
import json
import logging
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

from pydantic import TypeAdapter, ValidationError

from app import bundle as bundles
from app import errors
from app.errors import BundleError, NotReady, SeqserveError
from app.runtime import versions
from app.runtime.registry import Registry, Staged
from app.runtime.versions import Activated, counted

Line: TypeAlias = "Connection[Any, Any]"
Message: TypeAlias = dict[str, Any]

MAX_MESSAGE: Final = 2**16  # bytes
MAX_TEXT: Final = 4096  # characters of an error: each takes 12 bytes at most

_STORE_NAME: Final = TypeAdapter[str](bundles.StoreName)

log = logging.getLogger(__name__)


class Garbled(EOFError):
    """The peer sent an invalid message, so its stream can't be read any further."""


def send(line: Line, kind: str, number: int = 0, **fields: Any) -> None:
    """Send a message; do nothing if the peer has exited."""
    try:
        line.send_bytes(json.dumps({"kind": kind, "number": number, **fields}).encode())
    except (BrokenPipeError, ConnectionResetError):
        log.debug("%s: the peer has exited", kind)


def receive(line: Line) -> Message:
    """Receive a message. Raise EOFError if the peer has exited, Garbled for more than MAX_MESSAGE bytes."""
    try:
        message: Message = json.loads(line.recv_bytes(MAX_MESSAGE))
    except ConnectionResetError as error:
        raise EOFError from error
    except OSError as error:
        raise Garbled(f"expected a message of at most {MAX_MESSAGE} bytes: {error}") from error
    return message


def described(error: SeqserveError) -> dict[str, str]:
    """Return an error as a message field."""
    return {"name": type(error).__name__, "text": str(error)[:MAX_TEXT]}


def restored(error: Mapping[str, str]) -> SeqserveError:
    """Return the error that `described` encoded."""
    kind: type[SeqserveError] = getattr(errors, error["name"])
    return kind(error["text"])


class Shelf:
    """The models of a store, loaded by the supervisor before it forks.

    Workers share the memory pages of what is loaded then. ONNX Runtime does not support forks in general, but a session
    of one thread has no lock that another thread could hold and no thread that a fork could lose. Models with several
    threads are loaded by each worker.
    """

    def __init__(self, registry: Registry, *, share: bool) -> None:
        """List the models of the registry's store, and load them if `share`."""
        self.registry = registry
        self.versions: dict[str, str] = {}  # to serve, by name
        self._staged: dict[str, Staged] = {}
        for name in bundles.models(registry.store):
            version = ""  # unless CURRENT names one
            try:
                version = bundles.current(registry.store, name)
                if share:
                    self._staged[name] = registry.stage(name, version)
                self.versions[name] = version
            except SeqserveError as error:
                self._reject(name, version, error)

    def serve(self, versions: Mapping[str, str]) -> Registry:
        """Serve these versions in a worker; load those that the supervisor did not."""
        for name, version in versions.items():
            staged = self._staged.pop(name, None)
            try:
                if staged is None or staged.bundle.manifest.version != version:
                    staged = self.registry.stage(name, version)
                self.registry.switch(staged)
            except SeqserveError as error:
                self._reject(name, version, error)
        self._staged.clear()  # versions that this worker does not serve
        for name in self.registry.rejected.keys() - bundles.models(self.registry.store):
            self.registry.forget(name)  # deleted since the shelf was filled
        return self.registry

    def _reject(self, name: str, version: str, error: SeqserveError) -> None:
        log.error("%s: rejected: %s", name, error)
        self.registry.reject(name, version, str(error))


class Worker:
    """The worker's end of the channel."""

    def __init__(self, line: Line, shelf: Shelf, versions: Mapping[str, str]) -> None:
        """`versions`: to serve, by model name."""
        self._line = line
        self._shelf = shelf
        self._versions = versions
        self._numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Future[Message]] = {}
        self._staged: tuple[str, str, Staged | None] | None = None  # model, version, None if it is served already
        self._commands: asyncio.Queue[Message] = asyncio.Queue()

    @property
    def registry(self) -> Registry:
        """The registry of its models."""
        return self._shelf.registry

    def load(self) -> Registry:
        """Load the models and serve them. Blocks: call it before the event loop starts, or in a thread."""
        return self._shelf.serve(self._versions)

    async def attend(self, reload: Callable[[], None]) -> None:
        """Report readiness to the supervisor and run its commands until cancelled.

        `reload` starts a reload of the store's CURRENT versions.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._line.fileno(), self._read)
        send(self._line, "started")
        try:
            while True:
                await self._run_command(await self._commands.get(), reload)
        finally:
            loop.remove_reader(self._line.fileno())

    async def activate(self, registry: Registry, name: str, version: str) -> Activated:
        """Activate as `versions.activate` does, in all workers."""
        async with registry.changes:
            await self._reject_invalid(name, version)
            return await counted(registry, partial(self._request, save=True), name, version)

    async def reload(self, registry: Registry) -> None:
        """Reload as `versions.reload` does, in all workers."""
        await versions.reload(registry, partial(self._request, save=False))

    async def _reject_invalid(self, name: str, version: str) -> None:
        """Raise UnknownModel or UnknownVersion for an invalid name, which might not fit into a message."""
        try:
            for part in (name, version):
                _STORE_NAME.validate_python(part)
        except ValidationError:
            await asyncio.to_thread(self.registry.stage, name, version)  # raises, as there is no such folder

    async def _request(self, _: Registry, name: str, version: str, *, save: bool) -> Activated:
        number = next(self._numbers)
        self._requests[number] = asyncio.get_running_loop().create_future()
        send(self._line, "activate", number, model=name, version=version, save=save)
        try:
            reply = await self._requests[number]
        finally:
            del self._requests[number]
        if reply["error"]:
            raise restored(reply["error"])
        return Activated(name, version, reply["previous"], reply["unsaved"])

    def _read(self) -> None:
        try:
            message = receive(self._line)
        except EOFError:  # without the supervisor this process would never be stopped
            self._on_supervisor_exit()
            return
        if message["kind"] != "done":
            self._commands.put_nowait(message)
        elif request := self._requests.get(message["number"]):
            request.set_result(message)

    def _on_supervisor_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._line.fileno())
        for request in self._requests.values():
            request.set_exception(NotReady("the supervisor has exited and the workers are shutting down"))
        os.kill(os.getpid(), signal.SIGTERM)

    async def _run_command(self, command: Message, reload: Callable[[], None]) -> None:
        match command["kind"]:
            case "stage":
                await self._stage(command)
            case "switch":
                self._switch(command)
            case "drop":
                self._staged = None
            case "reload":
                reload()

    async def _stage(self, command: Message) -> None:
        name, version = command["model"], command["version"]
        error = None
        try:
            serves = self.registry.serving(name) == version
            staged = None if serves else await asyncio.to_thread(self.registry.stage, name, version)
            self._staged = (name, version, staged)
        except SeqserveError as found:
            error = described(found)
        except Exception as found:
            log.exception("%s: %s could not be loaded", name, version)
            error = described(BundleError(f"{name}: {version} could not be loaded: {found!r}"))
        send(self._line, "done", command["number"], error=error, previous=None)

    def _switch(self, command: Message) -> None:
        assert self._staged
        name, version, staged = self._staged
        self._staged = None
        previous: str | None = version
        if staged:
            previous = self.registry.switch(staged)
            log.info("%s: serves %s, before %s", name, version, previous or "none")
        send(self._line, "done", command["number"], error=None, previous=previous)
