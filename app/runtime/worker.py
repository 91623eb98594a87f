"""One of several processes that serve together: its models, and its line to the supervisor, who changes them in all.

Messages are JSON objects. Their `kind` says what is meant, `number` which change or question it belongs to:

    started, failed      worker -> supervisor    its models answer; it can't start (`error`)
    activate             worker -> supervisor    let `version` of `model` answer in all; `save`: after a restart too
    stage                supervisor -> worker    read and prove that version
    switch, drop         supervisor -> worker    what is staged answers from now on; it won't be needed
    reload               supervisor -> worker    SIGHUP came
    done                 either                  answers activate, stage and switch: `error`, `previous`, `unsaved`
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
    """The other end says what can't be a message, and can't be listened to any more."""


def send(line: Line, kind: str, number: int = 0, **fields: Any) -> None:
    """Say something to the other end; if that is gone, nobody needs to know any more."""
    try:
        line.send_bytes(json.dumps({"kind": kind, "number": number, **fields}).encode())
    except (BrokenPipeError, ConnectionResetError):
        log.debug("%s: the other end is gone", kind)


def receive(line: Line) -> Message:
    """What the other end says. Raise EOFError if it is gone, Garbled if that is longer than a message may be."""
    try:
        message: Message = json.loads(line.recv_bytes(MAX_MESSAGE))
    except ConnectionResetError as error:
        raise EOFError from error
    except OSError as error:
        raise Garbled(f"expected a message of at most {MAX_MESSAGE} bytes: {error}") from error
    return message


def described(error: SeqserveError) -> dict[str, str]:
    """An error as a message carries it."""
    return {"name": type(error).__name__, "text": str(error)[:MAX_TEXT]}


def restored(error: Mapping[str, str]) -> SeqserveError:
    """The error that `described` was given."""
    kind: type[SeqserveError] = getattr(errors, error["name"])
    return kind(error["text"])


class Shelf:
    """The models of a store as the supervisor found them, before it forks.

    What is read there, every worker shares, page for page. ONNX Runtime promises nothing of a fork; but a session of
    one thread has no lock that another thread could hold and no thread that a fork could lose. One of several threads
    has, so its models are read by each worker.
    """

    def __init__(self, registry: Registry, *, share: bool) -> None:
        """Find the models of the registry's store, and read them if they are to be shared."""
        self.registry = registry
        self.versions: dict[str, str] = {}  # that are to answer, by name
        self._staged: dict[str, Staged] = {}
        for name in bundles.models(registry.store):
            version = ""  # unless CURRENT names one
            try:
                version = bundles.current(registry.store, name)
                if share:
                    self._staged[name] = registry.stage(name, version)
                self.versions[name] = version
            except SeqserveError as error:
                self._refuse(name, version, error)

    def serve(self, versions: Mapping[str, str]) -> Registry:
        """Let these answer, in a worker: from the shelf, or read anew if others stand there."""
        for name, version in versions.items():
            staged = self._staged.pop(name, None)
            try:
                if staged is None or staged.bundle.manifest.version != version:
                    staged = self.registry.stage(name, version)
                self.registry.switch(staged)
            except SeqserveError as error:
                self._refuse(name, version, error)
        self._staged.clear()  # what this worker does not serve, it does not hold
        for name in self.registry.refused.keys() - bundles.models(self.registry.store):
            self.registry.forget(name)  # it is gone since the shelf was filled
        return self.registry

    def _refuse(self, name: str, version: str, error: SeqserveError) -> None:
        log.error("%s: refused: %s", name, error)
        self.registry.refuse(name, version, str(error))


class Worker:
    """A worker's end of the line."""

    def __init__(self, line: Line, shelf: Shelf, versions: Mapping[str, str]) -> None:
        """`versions`, by name, are to answer."""
        self._line = line
        self._shelf = shelf
        self._versions = versions
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._staged: tuple[str, str, Staged | None] | None = None  # model, version, None if it answers already
        self._orders: asyncio.Queue[Message] = asyncio.Queue()

    @property
    def registry(self) -> Registry:
        """Where its models are, once they are loaded."""
        return self._shelf.registry

    def load(self) -> Registry:
        """Let the models answer. Blocks; for the time before the event loop, or a thread."""
        return self._shelf.serve(self._versions)

    async def attend(self, reload: Callable[[], None]) -> None:
        """Tell the supervisor that the models answer, and do what it says until this is cancelled.

        `reload` begins to serve what the store names now.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._line.fileno(), self._read)
        send(self._line, "started")
        try:
            while True:
                await self._obey(await self._orders.get(), reload)
        finally:
            loop.remove_reader(self._line.fileno())

    async def activate(self, registry: Registry, name: str, version: str) -> Activated:
        """As `activation.activate`, in all workers."""
        async with registry.changes:
            await self._refuse_impossible(name, version)
            return await counted(registry, partial(self._ask, save=True), name, version)

    async def reload(self, registry: Registry) -> None:
        """As `activation.reload`, in all workers."""
        await versions.reload(registry, partial(self._ask, save=False))

    async def _refuse_impossible(self, name: str, version: str) -> None:
        """Raise UnknownModel or UnknownVersion for what no store can hold: it might not even fit into a message."""
        try:
            for part in (name, version):
                _STORE_NAME.validate_python(part)
        except ValidationError:
            await asyncio.to_thread(self.registry.stage, name, version)  # finds no such folder, and says so

    async def _ask(self, _: Registry, name: str, version: str, *, save: bool) -> Activated:
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        send(self._line, "activate", number, model=name, version=version, save=save)
        try:
            told = await self._asked[number]
        finally:
            del self._asked[number]
        if told["error"]:
            raise restored(told["error"])
        return Activated(name, version, told["previous"], told["unsaved"])

    def _read(self) -> None:
        try:
            message = receive(self._line)
        except EOFError:  # the supervisor is gone, and with it who would end this process
            self._be_alone()
            return
        if message["kind"] != "done":
            self._orders.put_nowait(message)
        elif asked := self._asked.get(message["number"]):
            asked.set_result(message)

    def _be_alone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._line.fileno())
        for asked in self._asked.values():
            asked.set_exception(NotReady("the workers have no supervisor any more and end"))
        os.kill(os.getpid(), signal.SIGTERM)

    async def _obey(self, order: Message, reload: Callable[[], None]) -> None:
        match order["kind"]:
            case "stage":
                await self._stage(order)
            case "switch":
                self._switch(order)
            case "drop":
                self._staged = None
            case "reload":
                reload()

    async def _stage(self, order: Message) -> None:
        name, version = order["model"], order["version"]
        error = None
        try:
            serves = self.registry.serving(name) == version
            staged = None if serves else await asyncio.to_thread(self.registry.stage, name, version)
            self._staged = (name, version, staged)
        except SeqserveError as found:
            error = described(found)
        except Exception as found:
            log.exception("%s: %s could not be read", name, version)
            error = described(BundleError(f"{name}: {version} could not be read: {found!r}"))
        send(self._line, "done", order["number"], error=error, previous=None)

    def _switch(self, order: Message) -> None:
        assert self._staged
        name, version, staged = self._staged
        self._staged = None
        previous: str | None = version
        if staged:
            previous = self.registry.switch(staged)
            log.info("%s: %s serves, before it %s", name, version, previous or "none")
        send(self._line, "done", order["number"], error=None, previous=previous)
