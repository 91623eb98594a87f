"""The operations endpoints."""

import re
import threading
from pathlib import Path

import pytest

from app.errors import NotReady
from app.main import create_app
from app.runtime.families.language_model import Suggest
from app.runtime.registry import Registry
from app.settings import Settings
from tests.api.conftest import FakeServed, connect, service, talk

pytestmark = pytest.mark.anyio


async def test_a_service_whose_models_all_answer_is_ready(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "models": [{"name": "ptb", "ready": True, "reason": None}]}


async def test_a_refused_model_is_named_and_the_others_serve(served: FakeServed) -> None:
    async with connect(service(served, refused={"bad": "a.onnx: has 3 bytes"})) as client:
        response = await client.get("/readyz")
        answer = await client.post("/next-word", json={"text": "a"})
        models = (await client.get("/models")).json()["models"]
        refused = await client.get("/models/bad")
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert response.json()["models"] == [
        {"name": "bad", "ready": False, "reason": "a.onnx: has 3 bytes"},
        {"name": "ptb", "ready": True, "reason": None},
    ]
    assert "bad: a.onnx: has 3 bytes" in response.json()["detail"]
    assert answer.status_code == 200
    assert [(model["name"], model["ready"], model["reason"]) for model in models] == [
        ("bad", False, "a.onnx: has 3 bytes"),
        ("ptb", True, None),
    ]
    assert refused.status_code == 503
    assert "a.onnx" in refused.json()["detail"]


async def test_a_service_without_models_is_never_ready() -> None:
    async with connect(service()) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of one model, whose loading a test replaces."""
    (tmp_path / "ptb" / "2").mkdir(parents=True)
    return tmp_path


async def test_a_service_lives_while_its_models_load(tiny_store: Path, loading: threading.Event) -> None:
    app = create_app(Settings(store=tiny_store))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["models"] == [{"name": "tiny", "ready": False, "reason": "loading"}]
        answer = await client.post("/next-word", json={"text": "a"})
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert (await client.get("/models")).json()["models"][0]["reason"] == "loading"
        assert (await client.get("/models/tiny")).status_code == 503
        loading.set()
        assert state is not None
        registry: Registry = state["registry"]
        await registry.opened()
        assert (await client.get("/readyz")).status_code == 200
        served = registry.get("tiny", "language_model")
    with pytest.raises(NotReady, match="tiny: is shutting down"):
        await served.answer(Suggest("the"))


async def test_a_service_that_could_not_load_lives_and_says_so(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(_: Registry) -> Registry:
        raise MemoryError("no room")

    monkeypatch.setattr(Registry, "load", load)
    app = create_app(Settings(store=store))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        assert state is not None
        await state["registry"].opened()
        response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["models"] == [
        {"name": "ptb", "ready": False, "reason": "could not be loaded; the log says why"}
    ]
    assert "no room" in caplog.text


async def test_models_lists_the_properties_that_clients_choose_by(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        response = await client.get("/models")
    assert response.json()["models"] == [
        {
            "name": "ptb",
            "family": "language_model",
            "version": "2",
            "versions": ["1", "2"],
            "ready": True,
            "reason": None,
            "cell": "lstm",
            "parameters": 4_000_000,
            "served": "int8",
            "metrics": {"test_perplexity": 80.5},
        }
    ]


async def test_a_model_has_all_fields_of_its_manifest(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        reported = (await client.get("/models/ptb")).json()
    assert reported["config"] == {"hidden": 200}
    assert reported["data"] == {"name": "ptb", "terms": "none", "sha256": {"ptb.train.txt": "1" * 64}}
    assert reported["metrics"] == {"test_perplexity": 80.5}
    assert reported["sizes"] == {"files": {"README.md": 10, "step.onnx": 7}, "total": 17}
    assert reported["versions"] == ["1", "2"]
    assert reported["card"] == "# A model\n"


async def test_an_unknown_model_is_not_found(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        response = await client.get("/models/%ED%A0%BD")
    assert response.status_code == 404
    assert response.json()["type"] == "/problems/unknown-model"


async def test_the_documentation_takes_nothing_from_another_host(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        page = (await client.get("/docs")).text
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(links) == 3
        for link in links:
            assert (await client.get(link)).status_code == 200
        missing = await client.get("/docs/files/nothing.js")
    assert "//" not in "".join(links)
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
