"""Operations endpoints: health, readiness, metrics, models, versions and documentation."""

from dataclasses import replace
from enum import Enum
from http import HTTPStatus
from typing import Final

from fastapi import HTTPException, Request
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles

from app.api.http import problems, security_headers, static_files
from app.api.http.bodies import JsonBody
from app.api.http.context import MetricsOf, RegistryOf
from app.api.http.endpoints import PROBLEMS, Endpoint, PublicMount
from app.api.operations.schemas import (
    Activate,
    ActivateAnswer,
    Alive,
    Model,
    ModelList,
    ModelState,
    ModelSummary,
    Readiness,
)
from app.errors import BundleError, NotReady, Unservable
from app.runtime import metrics as runtime_metrics
from app.runtime import versions
from app.runtime.registry import Registry, Served

CARD = "README.md"
IMAGE_TYPE = "image/png"
ACTIVATE_BYTES: Final = 4096


async def docs() -> Response:
    """Serve Swagger UI."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",  # relative, since a proxy may serve it under a prefix
        title="seqserve",
        swagger_js_url="docs/files/swagger-ui-bundle.js",
        swagger_css_url="docs/files/swagger-ui.css",
        swagger_favicon_url="docs/files/favicon.png",
    )
    page.headers["Content-Security-Policy"] = security_headers.documentation_policy(bytes(page.body))
    return page


async def openapi(request: Request) -> Response:
    """Serve the OpenAPI document."""
    return JSONResponse(request.app.openapi())


async def livez() -> Alive:
    """Answer while the process is alive, even while models load."""
    return {"status": "alive"}


async def readyz(registry: RegistryOf) -> Readiness | Response:
    """Report whether every model is ready; a 503 gives each reason. A service without models is never ready."""
    models = states(registry)
    if registry.ready:
        return {"status": "ready", "models": models}
    reasons = [f"{model['name']}: {model['reason']}" for model in models if not model["ready"]]
    report = problems.of(NotReady("; ".join(reasons) or "there are no models"))
    return problems.DOCUMENTS.respond(replace(report, more={"models": models}))


async def metrics(registered: MetricsOf) -> Response:
    """Return all metrics in Prometheus's text format."""
    return Response(registered.render(), headers={"Content-Type": runtime_metrics.CONTENT_TYPE})


def models(registry: RegistryOf) -> ModelList:
    """List all models of the store: those served, and those rejected with the reason."""
    known = [_summary(served) for served in registry.served()]
    known += [_unready(name, reason) for name, reason in registry.rejected.items()]
    return {"models": sorted(known, key=lambda model: model["name"])}


def model(model: str, registry: RegistryOf) -> Model:
    """Return the model's manifest: configuration, data, metrics, sizes, versions and the model card."""
    return _described(registry.named(model))


async def activate(model: str, body: Activate, registry: RegistryOf) -> Response:
    """Serve another version of the model, newer or older, without downtime.

    The new version is loaded, verified and probed while the old one serves; every answer names the version that
    produced it. A version that can't be served is a 409 with the reason, and the old one stays. If the store can't be
    written, the new version is served until the next restart, and `persisted` is false.

    Of several worker processes the answering one serves the version at once; the others follow within the second in
    which they notice the change of CURRENT, and the time to load it. They need a store that can be written: else 409.
    """
    try:
        done = await versions.activate(registry, model, body.version)
    except BundleError as error:
        raise Unservable(str(error)) from error
    answer: ActivateAnswer = {
        "model": done.model,
        "version": done.version,
        "previous": done.previous,
        "persisted": done.unsaved is None,
        "reason": done.unsaved,
    }
    return Response(to_json(answer), media_type="application/json")


def image(model: str, name: str, registry: RegistryOf, request: Request) -> Response:
    """Return an image of the model card. Other files of the bundle are not served."""
    served = registry.named(model)
    if name not in served.manifest.files or not name.endswith(".png"):
        raise HTTPException(HTTPStatus.NOT_FOUND, "no such image")
    return static_files.answer(
        request, lambda: served.bundle.content(name), IMAGE_TYPE, served.manifest.files[name].sha256
    )


def states(registry: Registry) -> list[ModelState]:
    """Return the readiness of every model, sorted by name."""
    answering: dict[str, str | None] = dict.fromkeys((served.name for served in registry.served()), None)
    known = answering | registry.rejected
    return [{"name": name, "ready": known[name] is None, "reason": known[name]} for name in sorted(known)]


def _summary(served: Served) -> ModelSummary:
    return {
        "name": served.name,
        "ready": True,
        "reason": None,
        "family": served.manifest.family,
        "version": served.version,
        "versions": served.versions,
        "cell": served.manifest.cell,
        "parameters": served.manifest.parameters,
        "served": served.precision,
        "metrics": served.manifest.metrics,
    }


def _unready(name: str, reason: str) -> ModelSummary:
    return {
        "name": name,
        "ready": False,
        "reason": reason,
        "family": None,
        "version": None,
        "versions": None,
        "cell": None,
        "parameters": None,
        "served": None,
        "metrics": None,
    }


def _described(served: Served) -> Model:
    manifest = served.manifest
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    headline = served.family.headline(manifest.metrics)
    return {
        "name": served.name,
        "family": manifest.family,
        "version": served.version,
        "versions": served.versions,
        "created": manifest.created,
        "commit": manifest.commit,
        "config": manifest.config,
        "normalisation": manifest.normalisation,
        "vocabulary_sha256": manifest.vocabulary_sha256,
        "data": manifest.corpus.model_dump(),
        "metrics": manifest.metrics,
        "headline": {
            "metric": headline.metric,
            "name": headline.name,
            "text": headline.text(manifest.metrics),
            "details": headline.details,
        }
        if headline
        else None,
        "calibration": manifest.calibration,
        "parameters": manifest.parameters,
        "served": served.precision,
        "sizes": {"files": sizes, "total": sum(sizes.values())},
        "card": served.bundle.text(CARD) if CARD in sizes else None,
    }


TAGS: Final[list[str | Enum]] = ["operations"]
MODEL_PROBLEMS: Final = problems.DOCUMENTS.documented(
    HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
)
ROUTES: Final[list[BaseRoute]] = [
    Endpoint("/docs", docs, scope=None, include_in_schema=False),
    Endpoint("/openapi.json", openapi, scope=None, include_in_schema=False),
    Endpoint("/livez", livez, scope=None, tags=TAGS),
    Endpoint(
        "/readyz",
        readyz,
        scope=None,
        response_model=Readiness,
        responses=problems.DOCUMENTS.documented(HTTPStatus.SERVICE_UNAVAILABLE),
        tags=TAGS,
    ),
    Endpoint(
        "/metrics",
        metrics,
        scope="admin",
        response_class=Response,
        responses={200: {"content": {runtime_metrics.CONTENT_TYPE: {"schema": {"type": "string"}}}}},
        tags=TAGS,
    ),
    Endpoint("/models", models, scope="predict", tags=TAGS),
    Endpoint("/models/{model}", model, scope="predict", responses=MODEL_PROBLEMS, tags=TAGS),
    Endpoint(
        "/models/{model}/activate",
        activate,
        scope="admin",
        body=JsonBody(ACTIVATE_BYTES),
        response_model=ActivateAnswer,
        responses=PROBLEMS | problems.DOCUMENTS.documented(HTTPStatus.CONFLICT),
        tags=TAGS,
    ),
    Endpoint(
        "/models/{model}/files/{name}",
        image,
        operation_id="picture_models__model__files__name__get",  # generated clients rely on it
        scope=None,  # a browser's <img> can't send a key, and a model card's images are not secret
        response_class=Response,
        responses={
            200: {"content": {IMAGE_TYPE: {"schema": {"type": "string", "contentMediaType": IMAGE_TYPE}}}},
            304: {"description": "Not modified: If-None-Match has the ETag."},
            **MODEL_PROBLEMS,
        },
        tags=TAGS,
    ),
    PublicMount("/docs/files", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-files"),
]
