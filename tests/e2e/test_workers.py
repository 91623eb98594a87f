"""Several worker processes at one port."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event

import httpx
import pytest

from app import bundle as bundles
from tests.e2e.conftest import ENVIRONMENT, seqserve, serving

WAIT_S = 30
TEXT = {"text": "the company said profits", "top_k": 3}
COUNTED = re.compile(r'^seqserve_requests_total\{.*route="/next-word".*\} (\S+)$', re.MULTILINE)


class Service:
    """A running supervisor and its workers."""

    def __init__(self, process: subprocess.Popen[str], url: httpx.URL, connections: Sequence[httpx.Client]) -> None:
        self.process = process
        self.url = url
        self.connections = connections  # eight open ones

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        pid = self.process.pid
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def by_worker(self) -> dict[int, list[httpx.Client]]:
        """Return the connections of each worker by process id."""
        owners = {inode: pid for pid in self.workers for inode in _sockets(pid)}
        found = dict[int, list[httpx.Client]]({pid: [] for pid in self.workers})
        for client in self.connections:
            found[owners[_inode(self.url, _local_port(client))]].append(client)
        return found

    def disconnect(self) -> None:
        """Close the connections: a worker that exits waits for its clients."""
        for client in self.connections:
            client.close()

    def post_once(self) -> httpx.Response:
        """Send a request over a new connection."""
        return httpx.post(self.url.join("/next-word"), json=TEXT, timeout=60)


@contextmanager
def working(store: Path, log: list[str] | None = None, **environment: str) -> Iterator[Service]:
    """Start two workers and open connections to both."""
    with serving(store, log, SEQSERVE_WORKERS="2", **environment) as (client, process), ExitStack() as stack:
        client.close()
        service = Service(process, client.base_url, [])
        deadline = time.monotonic() + WAIT_S
        while len([one for one in service.by_worker().values() if one]) < 2:
            assert time.monotonic() < deadline
            stack.close()
            service.connections = [
                stack.enter_context(httpx.Client(base_url=service.url, timeout=60)) for _ in range(8)
            ]
            for one in service.connections:
                one.get("/livez").raise_for_status()
        yield service


def _local_port(client: httpx.Client) -> int:
    (connection,) = client._transport._pool.connections  # type: ignore[attr-defined]  # noqa: SLF001
    address: tuple[str, int] = connection._connection._network_stream.get_extra_info("client_addr")  # noqa: SLF001
    return address[1]


def _inode(url: httpx.URL, port: int) -> str:
    """Return the inode of the server's socket for the connection from this port."""
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        if fields[1].endswith(f":{url.port:04X}") and fields[2].endswith(f":{port:04X}"):
            return fields[9]
    raise AssertionError(f"no connection from {port}")


def _sockets(pid: int) -> Iterator[str]:
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed in between
            yield str(file.readlink()).removeprefix("socket:[").removesuffix("]")


def wait_for_exit(pid: int) -> None:
    """Wait for a process that need not be a child of this one."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([handle], [], [], WAIT_S)
        assert ready
    finally:
        os.close(handle)


@pytest.fixture(scope="module")
def service(tiny_store: Path) -> Iterator[Service]:
    with working(tiny_store) as service:
        yield service


def test_connections_are_balanced_between_workers(service: Service) -> None:
    counts = [len(connections) for connections in service.by_worker().values()]
    assert max(counts) - min(counts) <= 2  # workers that accept at the same time may both take one


def test_each_worker_answers_bit_for_bit_like_a_single_process(service: Service, client: httpx.Client) -> None:
    scored = {"text": "the company said profits rose " * 50}
    for path, body, key in (("/next-word", TEXT, "suggestions"), ("/perplexity", scored, "results")):
        expected = client.post(path, json=body).json()[key]
        assert [one.post(path, json=body).json()[key] for one in service.connections] == [expected] * 8


def test_every_worker_exports_the_metrics_of_all(service: Service) -> None:
    before = _counted(service.connections[0])
    for one in service.connections:
        one.post("/next-word", json=TEXT).raise_for_status()
    for one in service.connections:  # a request is counted after its answer, but before the connection's next request
        one.get("/livez").raise_for_status()
    exported = [one.get("/metrics").text for one in service.connections]
    assert {tuple(COUNTED.findall(text)) for text in exported} == {(str(before + 8),)}
    for text in exported:
        assert text.count("seqserve_process_start_time_seconds{") == 2
        assert 'seqserve_model_ready{model="tiny",version="1"} 1.0' in text
        assert 'seqserve_queue_depth{model="tiny"} 0.0' in text


def test_workers_export_the_same_metrics_as_a_single_process(service: Service, tiny_store: Path) -> None:
    with serving(tiny_store) as (client, _):
        names = []
        for one in (client, service.connections[0]):
            one.post("/next-word", json=TEXT).raise_for_status()
            one.post("/perplexity", json={"text": "the company said " * 3000}).raise_for_status()
            samples = [line for line in one.get("/metrics").text.splitlines() if not line.startswith("#")]
            names.append({re.split(r"[{ ]", sample)[0] for sample in samples} | _labels(samples))
    alone, workers = names
    assert workers - alone == {"worker"}  # label of process metrics
    assert all(name.endswith("_created") for name in alone - workers)


def _labels(samples: Sequence[str]) -> set[str]:
    return {label for sample in samples for label in re.findall(r'[{,](\w+)="', sample)}


def test_workers_serve_models_with_several_threads(tiny_store: Path) -> None:
    with working(tiny_store, SEQSERVE_THREADS="2") as service:
        assert all(one.post("/next-word", json=TEXT).is_success for one in service.connections)


def test_a_single_threaded_model_starts_no_thread_and_can_be_forked(tiny_store: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from app import bundle
from app.runtime.loading import load_predictor
def tasks(): return len(os.listdir("/proc/self/task"))
before = tasks()
store = Path(sys.argv[1])
predictors = [load_predictor(bundle.read(store / n / bundle.current(store, n))) for n in bundle.models(store)]
print(tasks() - before)
"""
    command = [sys.executable, "-c", script, str(tiny_store)]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True, env=ENVIRONMENT).stdout == b"0\n"


def test_a_killed_worker_affects_only_its_own_connections(tiny_store: Path) -> None:
    log: list[str] = []
    with working(tiny_store, log) as service, ThreadPoolExecutor(8) as threads:
        lost, kept = service.workers
        connections = service.by_worker()[kept]
        stop = Event()

        def load(client: httpx.Client) -> int:
            answered = 0
            while not stop.is_set():
                client.post("/next-word", json=TEXT).raise_for_status()
                answered += 1
            return answered

        loads = [threads.submit(load, client) for client in connections]
        try:
            counts = [_counted(connections[0])]
            os.kill(lost, signal.SIGKILL)
            killed = time.monotonic()
            while len(service.workers) < 2 or lost in service.workers:
                service.post_once().raise_for_status()
                counts.append(_counted(connections[0]))
                assert time.monotonic() < killed + WAIT_S
            took = time.monotonic() - killed
            (restarted,) = set(service.workers) - {kept}
            os.kill(restarted, signal.SIGKILL)
            while len(service.workers) < 2 or restarted in service.workers:
                counts.append(_counted(connections[0]))
                assert time.monotonic() < killed + WAIT_S
        finally:
            stop.set()
        answered = sum(one.result() for one in loads)
        counts.append(_counted(connections[0]))
    assert took < 5
    assert counts == sorted(counts)
    assert counts[-1] >= answered
    backoffs = re.findall(r"exited with status -9; restarting in (\S+) s", "".join(log))
    assert backoffs == ["0.25", "0.5"]


def _counted(client: httpx.Client) -> float:
    return sum(map(float, COUNTED.findall(client.get("/metrics").text)))


def test_sigterm_lets_workers_finish_accepted_requests(tiny_store: Path) -> None:
    with working(tiny_store) as service, ThreadPoolExecutor(8) as threads:
        workers = service.workers
        body = {"text": "the company said profits rose " * 4000}
        pending = [threads.submit(one.post, "/perplexity", json=body) for one in service.connections]
        while _started(service.url) < 8:
            assert not all(one.done() for one in pending)
        service.process.send_signal(signal.SIGTERM)
        assert [one.result().status_code for one in pending] == [200] * 8
        assert service.process.wait() == 0
    for pid in workers:
        wait_for_exit(pid)


def _started(url: httpx.URL) -> float:
    text = httpx.get(url.join("/metrics")).text
    return sum(map(float, re.findall(r'seqserve_wait_seconds_count\{model="tiny"\} (\S+)', text)))


def test_sigint_from_a_terminal_causes_a_clean_exit(tiny_store: Path) -> None:
    log: list[str] = []
    with working(tiny_store, log) as service:
        service.disconnect()
        for pid in (service.process.pid, *service.workers):  # a terminal signals all processes
            os.kill(pid, signal.SIGINT)
        assert service.process.wait() == 0
    assert "Traceback" not in "".join(log)


def test_workers_exit_without_their_supervisor(tiny_store: Path) -> None:
    with working(tiny_store) as service:
        service.disconnect()
        workers = service.workers
        service.process.kill()
        for pid in workers:
            wait_for_exit(pid)


def test_a_start_up_error_is_printed_once(tiny_store: Path) -> None:
    environment = {"SEQSERVE_WORKERS": "3", "SEQSERVE_API_KEYS_FILE": "/nowhere/keys"}
    run = seqserve("serve", "--port", "0", "--store", tiny_store, **environment)
    assert run.returncode == 2
    assert run.stderr.startswith("seqserve: /nowhere/keys")
    assert run.stderr.count("\n") == 1


def test_rate_limits_with_workers_need_a_shared_storage(tiny_store: Path) -> None:
    run = seqserve("serve", "--workers", "2", "--store", tiny_store, SEQSERVE_RATE_LIMIT="5/minute")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "SEQSERVE_RATE_STORAGE: expected redis://" in run.stderr
    assert "SEQSERVE_WORKERS=2" in run.stderr


def test_all_workers_follow_an_activation_by_one(store: Path) -> None:
    with working(store) as service:
        one = service.connections[0]
        answer = one.post("/models/tiny/activate", json={"version": "2"})
        assert answer.json() == {"model": "tiny", "version": "2", "previous": "1", "persisted": True, "reason": None}
        assert _versions(service.connections[:1]) == {"2"}
        await_version(service, "2")
        assert one.post("/models/tiny/activate", json={"version": "3"}).status_code == 409
        assert _versions(service.connections) == {"2"}
        assert one.post("/models/tiny/activate", json={"version": "2"}).json()["previous"] == "2"
        exported = one.get("/metrics").text
        assert 'seqserve_swaps_total{model="tiny",outcome="switched"} 2.0' in exported  # one in each worker

        def activate(n: int) -> int:
            body = {"version": str(1 + n % 2)}
            return service.connections[n].post("/models/tiny/activate", json=body).status_code

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(activate, range(8))) == {200}
        active = bundles.current(store, "tiny")
        await_version(service, active)
        lost, kept = service.workers
        os.kill(lost, signal.SIGKILL)
        wait_for_exit(lost)
        os.kill(kept, signal.SIGKILL)
        assert service.post_once().json()["version"] == active  # of a restarted worker


def test_sighup_activates_the_repaired_version_in_all_workers(store: Path) -> None:
    log: list[str] = []
    with working(store, log) as service:
        vocabulary = store / "tiny" / "2" / "vocabulary.txt"
        whole = vocabulary.read_bytes()
        vocabulary.write_bytes(whole[:-1])
        bundles.activate(store, "tiny", "2")
        deadline = time.monotonic() + WAIT_S
        while "".join(log).count("tiny: rejected") < 2:  # both have seen it, and do not try it again
            assert time.monotonic() < deadline
        vocabulary.write_bytes(whole)
        service.process.send_signal(signal.SIGHUP)
        await_version(service, "2")


def test_workers_serve_added_families(two_versions: Path) -> None:
    script = """
import sys
from pathlib import Path
from app.runtime.families import FAMILIES
from app.server.serve import serve
from app.settings import Settings
serve(Settings(store=Path(sys.argv[1]), workers=2, port=0), families={"language_model": FAMILIES["digits"]})
"""
    command = [sys.executable, "-c", script, str(two_versions)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT)
    assert process.stderr
    try:
        lines = [next(process.stderr) for _ in range(2)]
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
    assert "reader.int8.onnx" in "".join(lines)  # rejected by the predictor that was given


def await_version(service: Service, version: str) -> None:
    """Wait until every worker answers with this version."""
    deadline = time.monotonic() + WAIT_S
    while _versions(service.connections) != {version}:
        assert time.monotonic() < deadline


def _versions(connections: Sequence[httpx.Client]) -> set[str]:
    return {one.post("/next-word", json=TEXT).json()["version"] for one in connections}
