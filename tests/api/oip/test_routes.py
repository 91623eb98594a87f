"""Health, metadata, configuration, statistics and the repository of the Open Inference Protocol."""

from pathlib import Path

import pytest

from app.main import create_app
from app.settings import Settings
from tests.api.conftest import FakeServed, connect, service, talk
from tests.api.published import Client

pytestmark = pytest.mark.anyio


def test_the_server_and_its_models_are_described(client: Client) -> None:
    server = client.get("/v2").json()
    assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("seqserve", True)
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    metadata = client.get("/v2/models/ptb").json()
    (version,) = metadata["versions"]
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert client.get(f"/v2/models/ptb/versions/{version}").json() == metadata
    assert client.get(f"/v2/models/ptb/versions/{version}/ready").json() == {"name": "ptb", "ready": True}
    config = client.get("/v2/models/digits/config").json()
    assert config["input"][0] == {"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}
    assert config["output"][1] == {"name": "confidence", "data_type": "TYPE_FP64", "dims": [-1]}


@pytest.mark.parametrize("path", ["/v2/models/none", "/v2/models/none/ready", "/v2/models/ptb/versions/1/ready"])
def test_another_model_or_version_is_unknown(client: Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert list(answer.json()) == ["error"]


async def test_a_model_that_is_not_ready_is_unavailable() -> None:
    async with connect(service(refused={"ptb": "a flipped bit"})) as client:
        health = await client.get("/v2/health/ready")
        ready = await client.get("/v2/models/ptb/ready")
        listed = (await client.post("/v2/repository/index", content=b"")).json()
        only_ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
    assert (health.status_code, health.json()) == (503, {"ready": False})
    assert (ready.status_code, ready.json()) == (503, {"error": "ptb: a flipped bit"})
    assert listed == [{"name": "ptb", "version": "", "state": "UNAVAILABLE", "reason": "a flipped bit"}]
    assert only_ready == []


def test_statistics_are_those_of_the_metrics(client: Client) -> None:
    before = client.get("/v2/models/ptb/stats").json()["model_stats"][0]
    client.post("/next-word", json={"model": "ptb", "text": "the company said"})
    after = client.get("/v2/models/ptb/stats").json()["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 1
    stats = after["inference_stats"]
    assert stats["success"]["ns"] == stats["queue"]["ns"] + stats["compute_infer"]["ns"]
    assert stats["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    everything = client.get("/v2/models/stats").json()["model_stats"]
    assert [model["name"] for model in everything] == ["captions", "digits", "everyday", "numbers", "ptb"]


async def test_a_load_serves_the_version_that_current_names(store: Path) -> None:
    app = create_app(Settings(store=store))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        assert state
        await state["registry"].opened()
        (store / "tiny" / "CURRENT").write_text("2\n")
        configured = await client.post("/v2/repository/models/tiny/load", json={"parameters": {"config": "{}"}})
        answers = [await client.post(f"/v2/repository/models/{name}/load") for name in ("tiny", "none")]
        unload = await client.post("/v2/repository/models/tiny/unload", json={})
        served = (await client.get("/v2/models/tiny")).json()["versions"]
    assert configured.status_code == 400
    assert "parameters.config" in configured.json()["error"]
    assert [answer.status_code for answer in answers] == [200, 404]
    assert (unload.status_code, "not supported" in unload.json()["error"]) == (400, True)
    assert served == ["2"]


async def test_errors_of_the_server_have_the_format_of_the_protocol(served: FakeServed) -> None:
    async def failing(payload: object, deadline: float | None) -> object:
        raise RuntimeError("secret")

    served.answering = failing
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}
    async with connect(service(served, rate_limit="1/minute")) as client:
        failed = await client.post("/v2/models/ptb/infer", json=body)
        limited = await client.post("/v2/models/ptb/infer", json=body)
    async with connect(service(served)) as client:
        method = await client.put("/v2/models/ptb/infer")
    for answer, status in ((failed, 500), (limited, 429), (method, 405)):
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
        assert isinstance(answer.json()["error"], str)
    assert "secret" not in failed.text
    assert limited.headers["retry-after"]
