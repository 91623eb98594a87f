"""Families, tokenizers and dialects are added from outside `app`, without editing a file."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute
from typing_extensions import TypedDict

from app import bundle as bundles
from app.api.dialects import DIALECTS
from app.api.http.bodies import JsonBody
from app.api.http.context import RegistryOf
from app.api.http.dialect import BodyLimits, Dialect
from app.api.http.endpoints import STATUSES, Deadline, Endpoint
from app.api.http.fields import RequestModel
from app.api.http.problems import ErrorFormat
from app.bundle import Bundle
from app.main import create_app
from app.runtime.families import FAMILIES, Family, Headline
from app.runtime.families.language_model import Suggest
from app.runtime.metrics import REQUEST_USAGE, Metrics, RequestUsage
from app.runtime.onnx_session import Precision
from app.runtime.predictor import Resources
from app.runtime.registry import Registry
from app.settings import Settings
from app.text import TOKENIZERS
from app.text.penn_treebank import PennTreebank
from tests.api.conftest import talk

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Shout:
    """The payload of a toy family."""

    text: str
    slow: ClassVar[bool] = False
    bulk: ClassVar[bool] = False


class ShoutPredictor:
    """A toy family's predictor: upper case."""

    PROBE_TOLERANCE: ClassVar[float] = 0.0
    fits_inline: ClassVar[None] = None
    precision: Precision = "fp32"

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> "ShoutPredictor":  # noqa: ARG003
        return cls()

    def prepare(self, payload: Shout) -> str:
        return payload.text

    def step(self, examples: Sequence[str]) -> list[str | None]:
        return [text.upper() for text in examples]

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        return [[payload["text"].upper(), 0.0]]


SHOUT = Family(
    "shout",
    ShoutPredictor,
    [Headline("test_loudness", "loudness", "{:.0f} dB", "")],
    lambda answer: {"tokens": len(answer)},
)


class Archaic(PennTreebank):
    """A toy tokenizer that writes the token `the` as `thee`."""

    def join(self, tokens: Sequence[str]) -> str:
        return super().join(["thee" if token == "the" else token for token in tokens])


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def publish(store: Path, bundle: Bundle, model: str, probe: object, **changes: Any) -> None:
    files: dict[str, bytes | Path] = {name: bundle.path(name) for name in bundle.manifest.files}
    manifest = bundle.manifest.model_copy(update={"files": {}, "model": model, **changes})
    bundles.publish(store, manifest, files | {"probe.json": json.dumps(probe).encode()})


def load(store: Path, **added: Any) -> Registry:
    metrics = Metrics(CollectorRegistry())
    return Registry(store, threads=1, queue_size=8, batch_size=8, cache_bytes=0, metrics=metrics, **added).load()


async def test_a_family_is_added(store: Path, tiny_bundle: Bundle) -> None:
    probe = {"payload": {"text": "hi"}, "answers": {"fp32": [["HI", 0.0]]}}
    publish(store, tiny_bundle, "loud", probe, family="shout", served="fp32")
    registry = load(store)
    assert "expected one of language_model, digits, numbers, captions, found 'shout'" in registry.rejected["loud"]
    await registry.close()
    registry = load(store, families={**FAMILIES, "shout": SHOUT})
    usage = RequestUsage()
    token = REQUEST_USAGE.set(usage)
    assert await registry.get(None, "shout").answer(Shout("hello")) == "HELLO"
    REQUEST_USAGE.reset(token)
    assert (usage.model, usage.tokens) == ("loud", 5)
    await registry.close()


async def test_a_tokenizer_is_added(store: Path, tiny_bundle: Bundle) -> None:
    probe = tiny_bundle.json("probe.json")
    for answers in probe["answers"].values():
        for answer in answers:
            answer[0] = "thee" if answer[0] == "the" else answer[0]
    publish(store, tiny_bundle, "archaic", probe, normalisation="archaic")
    registry = load(store, tokenizers={**TOKENIZERS, "archaic": Archaic})
    assert registry.rejected == {}
    found = await registry.get("archaic", "language_model").answer(Suggest("a ", top_k=50))
    texts = [suggestion.text for suggestion in found.suggestions]
    assert ("thee" in texts, "the" in texts) == (True, False)
    await registry.close()


class ShoutRequest(RequestModel):
    text: str


async def shout(body: ShoutRequest, registry: RegistryOf, deadline: Deadline) -> Response:
    with registry.get(None, "shout") as served:
        return PlainTextResponse(await served.answer(Shout(body.text), deadline=deadline))


class Complaint(TypedDict):
    complaint: str


COMPLAINTS = ErrorFormat(lambda report: {"complaint": report.detail.upper()}, Complaint, "application/toy+json")


def toy_routes(limits: BodyLimits) -> Sequence[BaseRoute]:
    body = JsonBody(limits.texts)
    return [Endpoint("/toy/shout", shout, scope="predict", body=body, responses=COMPLAINTS.documented(*STATUSES))]


async def test_the_service_speaks_an_added_dialect_for_an_added_family(store: Path, tiny_bundle: Bundle) -> None:
    probe = {"payload": {"text": "hi"}, "answers": {"fp32": [["HI", 0.0]]}}
    publish(store, tiny_bundle, "loud", probe, family="shout", served="fp32")
    app = create_app(
        Settings(store=store),
        families={**FAMILIES, "shout": SHOUT},
        dialects={**DIALECTS, "toy": Dialect(toy_routes, re.compile("[A-Z]+ /toy/.*"), COMPLAINTS)},
    )
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        assert state
        await state["registry"].opened()
        answer = await client.post("/toy/shout", json={"text": "hello"})
        wrong = await client.post("/toy/shout", json={"text": 1})
        unknown = await client.get("/toy/nothing")
        listed = (await client.get("/models")).json()["models"]
        document = (await client.get("/openapi.json")).json()
    assert answer.text == "HELLO"
    assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/toy+json")
    assert wrong.json() == {"complaint": "TEXT: EXPECTED A STRING, FOUND 1"}
    assert (unknown.status_code, unknown.json()) == (404, {"complaint": "GET /TOY/NOTHING: NOT FOUND"})
    assert {model["name"]: model["family"] for model in listed} == {"loud": "shout", "tiny": "language_model"}
    responses = document["paths"]["/toy/shout"]["post"]["responses"]
    assert list(responses["401"]["content"]) == ["application/toy+json"]
    assert set(responses) == {"200", "400", "401", "403", "404", "413", "415", "429", "503", "504"}
    assert "Complaint" in document["components"]["schemas"]
