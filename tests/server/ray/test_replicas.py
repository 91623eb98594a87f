"""Replicas of Ray Serve on a cluster of nodes on this machine; `make test-ray` runs them in ray's own environment."""

import asyncio
import importlib
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, Gauge
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ray = pytest.importorskip("ray", reason="ray is not installed: make test-ray")

from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.serve.schema import ServeDeploySchema  # noqa: E402

from app import bundle as bundles  # noqa: E402
from app.api.http.keys import create  # noqa: E402
from app.errors import SettingsError  # noqa: E402
from app.images import png  # noqa: E402
from app.server import ray as replicas_module  # noqa: E402
from app.server.ray import ProxyRequests, Scale, application  # noqa: E402
from app.settings import PREFIX, Settings  # noqa: E402
from tests.e2e.conftest import serving  # noqa: E402

ROOT: Final = Path(__file__).parents[3]
STORE: Final = ROOT / "models_store"
NODES: Final = 3  # of one processor; the head has none
WRITERS: Final = 6
TIMEOUT_S: Final = 120.0
WHOLE_S: Final = 30.0  # after the loss of a node
TEXT: Final = "shares of new york banks rose in the market as the company said profits fell".split()
DOCUMENT: Final = "the company said profits rose " * 40  # most requests in flight are of this kind
QUICK: Final = {"target_ongoing_requests": 1.0, "upscale_delay_s": 0.5, "downscale_delay_s": 1.0}
IMAGE: Final = png(np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8))
REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "/next-word": {"json": {"text": "The company said it expects third-quarter", "words": 3}},
    "/perplexity": {"json": {"text": "The company's profits rose.", "per_token": True, "alternatives": 2}},
    "/digits": {"files": {"image": IMAGE}},
    "/captions?alternatives=2": {"files": {"image": IMAGE}},
}

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # ray's own
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped models, with a version `next` of `ptb` that is not current."""
    store = Path(shutil.copytree(STORE, tmp_path_factory.mktemp("store") / "models_store"))
    current = bundles.read(store / "ptb" / bundles.current(store, "ptb"))
    contents: dict[str, bytes | Path] = {name: current.path(name) for name in current.manifest.files}
    bundles.publish(store, current.manifest.model_copy(update={"version": "next"}), contents)
    bundles.activate(store, "ptb", current.manifest.version)
    return store


@pytest.fixture(scope="module")
def key(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An admin key; the settings of all replicas are in the environment."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    key = create(file, "test", "admin", None)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SEQSERVE_")]:
            patch.delenv(name)
        patch.setenv("SEQSERVE_API_KEYS_FILE", str(file))
        patch.setenv("SEQSERVE_STORE", str(store))
        patch.setenv("SEQSERVE_DEFAULT_MODELS", "language_model=ptb")  # each of whose words is one token
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "app.server.ray:middleware")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield key


@pytest.fixture(scope="module")
def cluster(key: str) -> Iterator[Cluster]:
    node = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
    for _ in range(NODES):
        cluster.add_node(num_cpus=1, object_store_memory=node["object_store_memory"])
    ray.init(address=cluster.address)
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    """The URL of Ray's HTTP proxy."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    return f"http://127.0.0.1:{port}"


def deploy(**scale: Any) -> None:
    """Serve with this scale, and wait until the replicas are ready."""
    serve.run(application(Scale(**scale)), name="seqserve")


def replicas() -> dict[str, str]:
    """Return the node of each running replica."""
    details = serve.context._get_global_client().get_serve_details()  # noqa: SLF001  # no public name
    (deployment,) = details["applications"]["seqserve"]["deployments"].values()
    return {each["replica_id"]: each["node_id"] for each in deployment["replicas"] if each["state"] == "RUNNING"}


async def until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Poll a condition that blocks, in a thread."""
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(condition):
            pass


class Load:
    """Writers that type without a pause, each in a session of its own, and the statuses of their answers."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}
        self.statuses: Counter[int] = Counter()
        self.writers = WRITERS

    async def write(self, writer: int) -> None:
        headers = self._headers | {"X-Session-Id": f"writer-{writer}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=60) as client:
            while writer < self.writers:
                for length in range(1, len(TEXT) + 1):
                    await self._post(client, "/next-word", " ".join(TEXT[:length]))
                    await self._post(client, "/perplexity", DOCUMENT)

    async def _post(self, client: httpx.AsyncClient, path: str, text: str) -> None:
        response = await client.post(path, json={"text": text})
        self.statuses[response.status_code] += 1
        assert response.status_code == 200 or "Retry-After" in response.headers, response.text


@asynccontextmanager
async def load(url: str, key: str) -> AsyncIterator[Load]:
    load = Load(url, key)
    async with asyncio.TaskGroup() as writers:
        for writer in range(WRITERS):
            writers.create_task(load.write(writer))
        await until(lambda: load.statuses[200] > WRITERS)
        yield load
        load.writers = 0


def comparable(response: httpx.Response) -> Any:
    """Return an answer without the state of the cache."""
    assert response.status_code == 200, response.text
    return re.sub(r'"cached_tokens":\d+', "", response.text)


def test_answers_are_those_of_a_single_server_bit_for_bit(url: str, key: str) -> None:
    deploy()
    headers = {"Authorization": f"Bearer {key}"}
    with serving(STORE) as (single, _), httpx.Client(base_url=url, headers=headers, timeout=60) as replica:
        for path, request in REQUESTS.items():
            assert comparable(replica.post(path, **request)) == comparable(single.post(path, **request))


def test_a_caption_is_streamed(url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "Accept": "text/event-stream", "Content-Type": "image/png"}
    with httpx.stream("POST", f"{url}/captions", content=IMAGE, headers=headers, timeout=60) as response:
        events = [line for line in response.iter_lines() if line.startswith("event: ")]
    assert events[-1] == "event: caption"
    assert set(events[:-1]) == {"event: word"}


def test_operations_are_right_with_many_replicas(url: str, key: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        assert client.get("/readyz").json()["status"] == "ready"
        assert client.get("/metrics").status_code == 404
        response = client.get("/livez", headers={"X-Request-Id": "mine"})
        assert response.headers.get_list("X-Request-Id") == ["mine"]
        assert client.get("/models", headers={"Authorization": ""}).status_code == 401


async def test_replicas_are_added_and_removed_under_load_without_a_failure(url: str, key: str) -> None:
    await asyncio.to_thread(deploy, max_replicas=NODES, **QUICK)
    async with load(url, key) as writers:
        await until(lambda: len(replicas()) == NODES)
        writers.writers = 1
        await until(lambda: len(replicas()) == 1)
    assert {*writers.statuses} == {200}


async def test_a_writers_keystroke_reads_one_token(url: str, key: str) -> None:
    await asyncio.to_thread(deploy, min_replicas=2, max_replicas=2)
    await until(lambda: len(replicas()) == 2)
    read = []
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for length in range(1, len(TEXT) + 1):
            for writer in range(WRITERS):
                text = [f"{TEXT[writer]}", *TEXT[:length]]
                headers = {"X-Session-Id": f"typist-{writer}"}
                answer = (await client.post("/next-word", json={"text": " ".join(text)}, headers=headers)).json()
                read.append(answer["context_tokens"] - answer["cached_tokens"])
    assert read[WRITERS:] == [1] * (len(TEXT) - 1) * WRITERS


async def test_rays_agents_export_the_metrics_of_every_replica(url: str, key: str) -> None:
    ports = [node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]]
    sample = re.compile(r'ray_seqserve_requests_total\{.*[Rr]eplica="(\w+)".*route="/next-word".*\} \d')

    def exporting() -> set[str]:
        pages = [httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in ports]
        return {replica for page in pages for replica in sample.findall(page)}

    await until(lambda: exporting() >= {*replicas()})


async def test_requests_on_a_lost_node_fail_with_503_alone(cluster: Cluster, url: str, key: str) -> None:
    before = await asyncio.to_thread(replicas)
    assert len(set(before.values())) == 2
    lost = next(iter(before.values()))
    (node,) = (node for node in cluster.worker_nodes if node.node_id == lost)
    async with load(url, key) as writers:
        killed = time.monotonic()
        await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
        await until(lambda: len(set(replicas().values()) - {lost}) == 2, WHOLE_S)
        print(f"two replicas again after {time.monotonic() - killed:.1f} s; answers by status: {writers.statuses}")
        answered = writers.statuses[200]
        await until(lambda: writers.statuses[200] > answered + 10 * WRITERS)
    assert {*writers.statuses} <= {200, 503}


async def test_an_activation_reaches_every_replica(url: str, key: str) -> None:
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        activated = await client.post("/models/ptb/activate", json={"version": "next"})
        assert activated.json()["persisted"], activated.text

        async def version(writer: int) -> str:
            answer = await client.post("/next-word", json={"text": "the"}, headers={"X-Session-Id": str(writer)})
            found: str = answer.json()["version"]
            return found

        async with asyncio.timeout(TIMEOUT_S):
            while {await version(writer) for writer in range(4 * WRITERS)} != {"next"}:
                pass


async def test_a_sample_that_is_gone_is_exported_as_0(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: dict[str, float] = {}

    class Exported:
        def __init__(self, name: str, tag_keys: tuple[str, ...]) -> None:
            assert (name, tag_keys) == ("ready", ("version",))

        def set(self, value: float, tags: dict[str, str]) -> None:
            exported[tags["version"]] = value

    monkeypatch.setattr("app.server.ray.ray_metrics.Gauge", Exported)
    monkeypatch.setattr(replicas_module, "EXPORT_S", 0)
    registry = CollectorRegistry()
    ready = Gauge("ready", "A version's readiness", ["version"], registry=registry)
    ready.labels("1").set(1)
    exporting = asyncio.create_task(replicas_module._export(registry))  # noqa: SLF001
    await asyncio.sleep(0)  # one round
    assert exported == {"1": 1}
    ready.remove("1")
    ready.labels("2").set(1)
    await asyncio.sleep(0)
    exporting.cancel()
    assert exported == {"1": 0, "2": 1}


async def through_proxy(inner: ASGIApp, **headers: str) -> httpx.Response:
    """Return the response to a request through the proxies' middleware."""
    transport = httpx.ASGITransport(ProxyRequests(inner))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        return await client.post("/next-word", headers=headers)


async def routed(**headers: str) -> str:
    """Return the session by which Ray routes a request."""

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(Headers(scope=scope)["X-Session-Id"])(scope, receive, send)

    return (await through_proxy(inner, **headers)).text


async def test_a_request_is_routed_by_its_session_else_by_its_key_else_by_its_address() -> None:
    by_key, by_address = await routed(Authorization="Bearer a"), await routed()
    assert await routed(**{"X-Session-Id": "mine", "Authorization": "Bearer a"}) == "mine"
    assert await routed(**{"X-API-Key": "a"}) != by_key != await routed(Authorization="Bearer b")
    assert by_key != by_address
    assert [await routed(Authorization="Bearer a"), await routed()] == [by_key, by_address]
    assert "Bearer" not in by_key


async def test_a_request_without_a_response_gets_503_with_retry_after() -> None:
    async def lost(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    response = await through_proxy(lost)
    assert (response.status_code, response.json()["type"]) == (503, "/problems/not-ready")
    assert int(response.headers["Retry-After"]) > 0


def test_the_manifest_of_kuberay_deploys_this_application(key: str) -> None:
    service = yaml.safe_load((ROOT / "deploy" / "ray" / "service.yaml").read_text(encoding="utf-8"))["spec"]
    served = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    assert served.http_options.keep_alive_timeout_s == Settings.model_fields["keep_alive_s"].default
    (declared,) = served.applications
    module, _, name = declared.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is application
    application(Scale.model_validate(declared.args))
    assert service["rayClusterConfig"]["rayVersion"] == ray.__version__
    assert f"FROM rayproject/ray:{ray.__version__}-" in (ROOT / "deploy" / "ray" / "Dockerfile").read_text()
    for group in (service["rayClusterConfig"]["headGroupSpec"], *service["rayClusterConfig"]["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        assert variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "app.server.ray:middleware"
        settings = {name.removeprefix(PREFIX).lower() for name in variables if name.startswith(PREFIX)}
        assert settings <= {*Settings.model_fields}


def test_a_service_without_keys_is_rejected(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQSERVE_API_KEYS_FILE")
    with pytest.raises(SettingsError, match="SEQSERVE_API_KEYS_FILE: expected a file of API keys, found none"):
        application(Scale())


def test_rates_that_each_replica_counts_separately_are_rejected(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQSERVE_RATE_LIMIT", "600/minute")
    with pytest.raises(SettingsError, match="SEQSERVE_RATE_STORAGE"):
        application(Scale())
