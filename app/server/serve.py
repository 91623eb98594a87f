"""`seqserve serve`: one server process, or several workers under a supervisor."""

import ctypes
import gc
import logging
import multiprocessing
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from app.api.http import logs
from app.errors import SeqserveError, SettingsError
from app.main import create_app, sizes
from app.runtime import versions
from app.runtime.metrics import Metrics, Shared
from app.runtime.registry import Registry
from app.runtime.worker import Line, Shelf, Worker, described, send
from app.server import protocol
from app.server.acceptor import ABSENT, WorkerServer
from app.server.shutdown import GracefulServer
from app.server.supervisor import Supervisor
from app.settings import Settings

BACKLOG = 2048  # connections waiting to be accepted
SWITCH_S = 0.0005  # an inference thread gets the GIL within this; Python's default of 5 ms is several scheduling steps
FAILED = 1  # exit status


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and return the exit status. Raise SettingsError for an unusable setting."""
    logging.basicConfig(level=settings.log_level.upper(), handlers=[logs.handler(settings.log_format, sys.stderr)])
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # our log formats leave these out
    # It warns about each malformed form, and any client can send one
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    listening = _listen(settings)
    settings = settings.model_copy(update={"port": listening.getsockname()[1]})
    if settings.workers == 1:
        _run(GracefulServer(_config(create_app(settings), settings)), listening)
        return 0
    with tempfile.TemporaryDirectory(prefix="seqserve-") as folder:
        return _supervise(settings, listening, Path(folder))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"{settings.url}: can't listen: {error.strerror}") from error


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol.limited(settings.max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=settings.grace_s,
    )


def _run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve connections from `listening` until SIGTERM or SIGINT, then finish the accepted requests."""
    sys.setswitchinterval(SWITCH_S)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again after a clean shutdown
    server.run([listening])


def _supervise(settings: Settings, listening: socket.socket, folder: Path) -> int:
    """Run the workers, whose shared metrics lie in `folder`, and return the exit status."""
    pids = RawArray(ctypes.c_int, settings.workers)
    counts = RawArray(ctypes.c_int, [ABSENT] * settings.workers)
    shared = Shared(folder, lambda: list(pids))
    shared.open()
    registry = Registry(settings.store, metrics=Metrics(CollectorRegistry(), shared), **sizes(settings))
    shelf = Shelf(registry, share=settings.threads == 1)

    def work(line: Line, index: int, versions: Mapping[str, str]) -> None:
        pids[index] = multiprocessing.current_process().pid or 0
        try:
            app = create_app(settings, worker=Worker(line, shelf, versions))
        except SeqserveError as error:
            send(line, "failed", error=described(error))
            sys.exit(FAILED)
        _run(WorkerServer(_config(app, settings), index, counts), listening)

    def on_reaped(index: int, name: str) -> None:
        pids[index], counts[index] = 0, ABSENT
        shared.bury(name)

    gc.collect()
    gc.freeze()  # a worker's collector would write to all pages and unshare them
    supervisor = Supervisor(
        work,
        workers=settings.workers,
        versions=shelf.versions,
        save=partial(versions.save, settings.store),
        on_reaped=on_reaped,
        grace_s=settings.grace_s,
    )
    return 0 if supervisor.run(listening) else FAILED
