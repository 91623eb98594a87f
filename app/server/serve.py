"""`seqserve serve`: one process that answers, or several under a supervisor."""

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
from app.server.acceptor import ABSENT, FairServer
from app.server.shutdown import PatientServer
from app.server.supervisor import Supervisor
from app.settings import Settings

BACKLOG = 2048  # connections that wait to be accepted
SWITCH_S = 0.0005  # an inference thread has the interpreter back within this; Python's own 5 ms are several turns
FAILED = 1  # exit status


def serve(settings: Settings) -> int:
    """Answer until SIGTERM or SIGINT; the exit status. Raise SettingsError if a setting can't be kept to."""
    logging.basicConfig(level=settings.log_level.upper(), handlers=[logs.handler(settings.log_format, sys.stderr)])
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # what no form of ours tells
    logging.getLogger("python_multipart").setLevel(
        logging.ERROR
    )  # it warns of each malformed form, and anyone can send one
    listening = _listen(settings)
    settings = settings.model_copy(update={"port": listening.getsockname()[1]})
    if settings.workers == 1:
        _answer(PatientServer(_config(create_app(settings), settings)), listening)
        return 0
    with tempfile.TemporaryDirectory(prefix="seqserve-") as folder:
        return _supervise(settings, listening, Path(folder))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"{settings.url}: can't listen there: {error.strerror}") from error


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol.bounded(settings.max_connections),
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


def _answer(server: uvicorn.Server, listening: socket.socket) -> None:
    """Answer what is accepted from `listening` until SIGTERM or SIGINT, and finish what was accepted then."""
    sys.setswitchinterval(SWITCH_S)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has stopped in peace
    server.run([listening])


def _supervise(settings: Settings, listening: socket.socket, folder: Path) -> int:
    """Let workers answer, which count together in `folder`; the exit status."""
    pids = RawArray(ctypes.c_int, settings.workers)
    counts = RawArray(ctypes.c_int, [ABSENT] * settings.workers)
    shared = Shared(folder, lambda: list(pids))
    shared.open()
    registry = Registry(settings.store, metrics=Metrics(CollectorRegistry(), shared), **sizes(settings))
    shelf = Shelf(registry, share=settings.threads == 1)

    def work(line: Line, place: int, versions: Mapping[str, str]) -> None:
        pids[place] = multiprocessing.current_process().pid or 0
        try:
            app = create_app(settings, worker=Worker(line, shelf, versions))
        except SeqserveError as error:
            send(line, "failed", error=described(error))
            sys.exit(FAILED)
        _answer(FairServer(_config(app, settings), place, counts), listening)

    def bury(place: int, name: str) -> None:
        pids[place], counts[place] = 0, ABSENT
        shared.bury(name)

    gc.collect()
    gc.freeze()  # else a worker's collector would write to all pages, and they would be shared no more
    supervisor = Supervisor(
        work,
        workers=settings.workers,
        versions=shelf.versions,
        save=partial(versions.save, settings.store),
        buried=bury,
        grace_s=settings.grace_s,
    )
    return 0 if supervisor.run(listening) else FAILED
