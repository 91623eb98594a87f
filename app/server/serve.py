"""`seqserve serve`: one server process, or several workers under a supervisor."""

import ctypes
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from app.api.dialects import DIALECTS
from app.api.http import logs
from app.api.http.dialect import Dialect
from app.errors import SettingsError
from app.main import create_app, log_models, open_registry
from app.runtime.families import FAMILIES, Family
from app.runtime.memory import freeze_heap, limit_heap
from app.runtime.metrics import Metrics, Shared
from app.server import protocol, sockets
from app.server.acceptor import ABSENT
from app.server.shutdown import GracefulServer
from app.server.supervisor import Heartbeat, Supervisor
from app.settings import Settings, unknown_variables
from app.text import TOKENIZERS, Tokenizer

SWITCH_S = 0.0005  # an inference thread gets the GIL within this; Python's default of 5 ms is several scheduling steps

log = logging.getLogger(__name__)


def serve(
    settings: Settings,
    *,
    families: Mapping[str, Family] = FAMILIES,
    tokenizers: Mapping[str, type[Tokenizer]] = TOKENIZERS,
    dialects: Mapping[str, Dialect] = DIALECTS,
) -> int:
    """Serve until SIGTERM or SIGINT and return the exit status. Raise SettingsError for an unusable setting."""
    limit_heap()
    logging.basicConfig(level=settings.log_level.upper(), handlers=[logs.handler(settings.log_format, sys.stderr)])
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # our log formats leave these out
    # It warns about each malformed form, and any client can send one
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    for warning in unknown_variables(os.environ):
        log.warning(warning)
    listening = sockets.listen(settings)
    if not settings.unix_socket:
        settings = settings.model_copy(update={"port": listening.getsockname()[1]})
    if settings.workers == 1:
        app = create_app(settings, families=families, tokenizers=tokenizers, dialects=dialects)
        _run(GracefulServer(_config(app, settings), 0, (ctypes.c_int * 1)(ABSENT)), listening)
        return 0
    try:
        temporary = tempfile.TemporaryDirectory(prefix="seqserve-")
    except FileNotFoundError as error:  # there is no writable one
        raise SettingsError(f"SEQSERVE_WORKERS: expected a folder for temporary files: {error.strerror}") from error
    with temporary as folder:
        return _supervise(settings, listening, Path(folder), families, tokenizers, dialects)


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol.limited(
            settings.max_connections, per_address=settings.max_connections_per_address, exempt=settings.proxies
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.proxies or settings.unix_socket),
        forwarded_allow_ips="*" if settings.unix_socket else settings.proxies,  # only a local proxy opens the socket
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.grace_s,
    )


def _run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve connections from `listening` until SIGTERM or SIGINT, then finish the accepted requests."""
    sys.setswitchinterval(SWITCH_S)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again after a clean shutdown
    server.run([listening])


def _supervise(
    settings: Settings,
    listening: socket.socket,
    folder: Path,
    families: Mapping[str, Family],
    tokenizers: Mapping[str, type[Tokenizer]],
    dialects: Mapping[str, Dialect],
) -> int:
    """Run the workers, whose shared metrics lie in `folder`, and return the exit status."""
    pids = RawArray(ctypes.c_int, settings.workers)
    counts = RawArray(ctypes.c_int, [ABSENT] * settings.workers)
    shared = Shared(folder, lambda: list(pids))
    shared.open()
    registry = open_registry(settings, Metrics(CollectorRegistry(), shared), families, tokenizers)
    registry.preload()

    def work(index: int, heartbeat: Heartbeat) -> None:
        pids[index] = os.getpid()
        app = create_app(settings, registry, dialects=dialects)
        registry.load()
        freeze_heap()
        log_models(settings, registry)
        _run(GracefulServer(_config(app, settings), index, counts, heartbeat), listening)

    def on_reaped(index: int, name: str) -> None:
        pids[index], counts[index] = 0, ABSENT
        shared.remove_gauges(name)

    freeze_heap()  # a worker's collector would write to all pages and unshare them
    supervisor = Supervisor(work, workers=settings.workers, on_reaped=on_reaped, grace_s=settings.grace_s)
    return supervisor.run(listening)
