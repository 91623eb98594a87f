"""What an operator asks: does it live, is it ready, what does it measure, which models does it have?"""

from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, HTTPException, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import JSONResponse, Response

from app.api.http import bodies, problems, security_headers, static_files
from app.api.http.state import Catalogue, CatalogueOf, MetricsOf
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
from app.errors import BundleError, NotReady, UnknownModel, Unservable
from app.runtime import metrics as runtime_metrics
from app.runtime.registry import Served

CARD = "README.md"
PICTURE = "image/png"
DOCS_FILES = "/docs/files"
ACTIVATE_BYTES: Final = 4096

router = APIRouter(tags=["operations"])


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The OpenAPI document, for people."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="seqserve",
        swagger_js_url=f"{DOCS_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{DOCS_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{DOCS_FILES}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = security_headers.documentation_policy(bytes(page.body))
    return page


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/livez")
async def livez() -> Alive:
    """Does the process answer? It does, even while models load."""
    return {"status": "alive"}


@router.get("/readyz", response_model=Readiness, responses=problems.documented(HTTPStatus.SERVICE_UNAVAILABLE))
async def readyz(catalogue: CatalogueOf) -> Readiness | Response:
    """Does every model answer? A 503 says for each one that does not why; a service without any is never ready."""
    models = states(catalogue)
    if catalogue.ready:
        return {"status": "ready", "models": models}
    reasons = [f"{model['name']}: {model['reason']}" for model in models if not model["ready"]]
    return problems.problem(
        problems.KINDS[NotReady],
        "; ".join(reasons) or "there are no models",
        {"Retry-After": str(problems.NOT_READY_RETRY_S)},
        models=models,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {runtime_metrics.CONTENT_TYPE: {"schema": {"type": "string"}}}}},
)
async def metrics(figures: MetricsOf) -> Response:
    """All figures, in Prometheus's text format."""
    return Response(figures.render(), headers={"Content-Type": runtime_metrics.CONTENT_TYPE})


@router.get("/models")
def models(catalogue: CatalogueOf) -> ModelList:
    """All models of the store: those that answer, and those that were refused, with the reason."""
    known = [_summary(served) for served in catalogue.served()]
    known += [_unready(name, reason) for name, reason in catalogue.not_ready().items()]
    return {"models": sorted(known, key=lambda model: model["name"])}


@router.get(
    "/models/{model}",
    responses=problems.documented(
        HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
    ),
)
def model(model: str, catalogue: CatalogueOf) -> Model:
    """What the model's bundle says of it: configuration, data, figures, sizes, versions and the model card."""
    return _described(_named(model, catalogue))


async def activate(model: str, body: Activate, catalogue: CatalogueOf) -> ActivateAnswer:
    """Let another version of the model answer, without a pause: a newer one, or for a way back an older one.

    It is read, verified and tried while the old one serves; a request is answered by one of the two, whose name is in
    the answer. A version that can't be served is a 409 that says why, and the old one goes on. If the store can't be
    written, the new one serves until the next restart, and `persisted` is false.
    """
    try:
        done = await catalogue.activate(model, body.version)
    except BundleError as error:
        raise Unservable(str(error)) from error
    return {
        "model": done.model,
        "version": done.version,
        "previous": done.previous,
        "persisted": done.unsaved is None,
        "reason": done.unsaved,
    }


router.add_api_route(
    "/models/{model}/activate",
    activate,
    methods=["POST"],
    responses=bodies.PROBLEMS | problems.documented(HTTPStatus.CONFLICT),
    route_class_override=bodies.json_route(ACTIVATE_BYTES),
)


@router.get(
    "/models/{model}/files/{name}",
    response_class=Response,
    responses={
        200: {"content": {PICTURE: {"schema": {"type": "string", "contentMediaType": PICTURE}}}},
        304: {"description": "The caller has it already: its ETag came as If-None-Match."},
        **problems.documented(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
    },
)
def picture(model: str, name: str, catalogue: CatalogueOf, request: Request) -> Response:
    """A picture of the model card. No other file of the bundle is handed out."""
    served = _named(model, catalogue)
    if name not in served.manifest.files or not name.endswith(".png"):
        raise HTTPException(HTTPStatus.NOT_FOUND, "no such picture")
    return static_files.answer(
        request, lambda: served.bundle.content(name), PICTURE, served.manifest.files[name].sha256
    )


def _named(name: str, catalogue: Catalogue) -> Served:
    """The model of that name. Raise UnknownModel or NotReady."""
    for served in catalogue.registry.served():
        if served.name == name:
            return served
    if reason := catalogue.not_ready().get(name):
        raise NotReady(f"{name}: {reason}")
    raise UnknownModel(f"{name[: problems.MAX_SHOWN]}: no such model")


def states(catalogue: Catalogue) -> list[ModelState]:
    """Every model and whether it answers, by name."""
    answering: dict[str, str | None] = dict.fromkeys((served.name for served in catalogue.served()), None)
    known = answering | catalogue.not_ready()
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
        "calibration": manifest.calibration,
        "parameters": manifest.parameters,
        "served": served.precision,
        "sizes": {"files": sizes, "total": sum(sizes.values())},
        "card": served.bundle.text(CARD) if CARD in sizes else None,
    }
