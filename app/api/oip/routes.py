"""Routes of the Open Inference Protocol."""

import re
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias

from fastapi import Depends, Request
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from app import bundle as bundles
from app.api.http import costs
from app.api.http.context import MetricsOf, RegistryOf
from app.api.http.dialect import BodyLimits, Dialect
from app.api.http.endpoints import STATUSES, Context, Deadline, Endpoint
from app.api.http.problems import MAX_SHOWN, ErrorFormat
from app.api.http.uploads import BASE64
from app.api.oip import tensors
from app.api.oip.schemas import (
    Duration,
    Failure,
    InferAnswer,
    InferRequest,
    Live,
    LoadRequest,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    Ready,
    RepositoryIndexRequest,
    RepositoryModel,
    Server,
    Statistics,
    TensorConfig,
)
from app.api.oip.signatures import SIGNATURES, Call, Signature
from app.api.oip.tensors import LooseJson, Spec, TensorBody
from app.errors import BundleError, InvalidField, Malformed, UnknownModel, UnknownVersion, Unservable
from app.runtime import versions
from app.runtime.metrics import Metrics
from app.runtime.registry import Registry, Served

ERRORS: Final = ErrorFormat(lambda report: {"error": report.detail}, Failure)
TAGS: Final[list[str | Enum]] = ["Open Inference Protocol"]
EXTENSIONS: Final = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
TYPES: Final = {"BYTES": "TYPE_STRING"}  # Triton's names of datatypes; others are TYPE_ and the name
CONTROL_BYTES: Final = 4096  # body limit of the repository's routes
NANOSECONDS: Final = 10**9


def routes(limits: BodyLimits) -> list[BaseRoute]:
    """Return the endpoints below /v2."""
    infer_body = TensorBody(int(limits.uploads * BASE64), cost=_cost)
    control = LooseJson(CONTROL_BYTES)
    failing = ERRORS.documented(*STATUSES)
    of_model = ERRORS.documented(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)
    options: dict[str, Any] = {"tags": TAGS, "scope": "predict"}
    return [
        Endpoint("/v2", server, scope=None, tags=TAGS),  # clients send no key here
        Endpoint("/v2/health/live", live, scope=None, tags=TAGS),
        Endpoint(
            "/v2/health/ready",
            ready,
            scope=None,
            tags=TAGS,
            response_model=Ready,
            responses={503: {"description": "Not ready", "model": Ready}},
        ),
        Endpoint("/v2/models/stats", all_statistics, responses=of_model, **options),
        *_of_model("", metadata, responses=of_model, **options),
        *_of_model("/ready", model_ready, responses=of_model, **options),
        *_of_model("/config", config, responses=of_model, **options),
        *_of_model("/stats", statistics, responses=of_model, **options),
        *_of_model("/infer", infer, body=infer_body, response_model=InferAnswer, responses=failing, **options),
        Endpoint(
            "/v2/repository/index",
            index,
            body=control,
            response_model=list[RepositoryModel],
            responses=failing,
            **options,
        ),
        Endpoint(
            "/v2/repository/models/{model}/load",
            load,
            scope="admin",
            body=control,
            response_model=dict[str, str],
            responses=failing | ERRORS.documented(HTTPStatus.CONFLICT),
            tags=TAGS,
        ),
        Endpoint(
            "/v2/repository/models/{model}/unload",
            unload,
            scope="admin",
            body=control,
            response_model=dict[str, str],
            responses=failing,
            tags=TAGS,
        ),
    ]


def _of_model(path: str, handler: Callable[..., Any], **options: Any) -> list[Endpoint]:
    """Return the endpoints of a model's `path`, without and with a version."""
    found = []
    for names in (("model",), ("model", "version")):
        template = "/versions".join(f"/{{{name}}}" for name in names)
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "title": name.title()}}
            for name in names
        ]
        extra = {"parameters": parameters}
        found.append(Endpoint(f"/v2/models{template}{path}", handler, openapi_extra=extra, **options))
    return found


async def _target(request: Request) -> Served:
    """Return the model of the path. Raise UnknownModel, NotReady or UnknownVersion."""
    registry: Registry = request.scope["state"]["registry"]
    served = registry.named(request.path_params["model"])
    version = request.path_params.get("version")
    if version not in (None, served.version):
        raise UnknownVersion(f"{served.name}: expected version {served.version}, found {version[:MAX_SHOWN]!r}")
    return served


Target: TypeAlias = Annotated[Served, Depends(_target)]


async def server(request: Request) -> Server:
    """Return the server's name, version and extensions."""
    return {"name": "seqserve", "version": request.app.version, "extensions": EXTENSIONS}


async def live() -> Live:
    """Answer while the process is alive."""
    return {"live": True}


async def ready(registry: RegistryOf) -> Response:
    """Report whether every model is ready."""
    return JSONResponse({"ready": registry.ready}, 200 if registry.ready else 503)


async def model_ready(target: Target) -> ModelReady:
    """Report that a model is ready; one that is not is a 503."""
    return {"name": target.name, "ready": True}


async def metadata(target: Target) -> ModelMetadata:
    """Return the names and types of a model's tensors."""
    signature = _signature(target)
    return {
        "name": target.name,
        "versions": [target.version],
        "platform": _platform(target),
        "inputs": [{"name": name, "datatype": type_, "shape": list(shape)} for name, type_, shape in signature.inputs],
        "outputs": [
            {"name": name, "datatype": type_, "shape": list(shape)} for name, type_, shape in signature.outputs
        ],
    }


async def config(target: Target) -> ModelConfig:
    """Return a model's configuration in Triton's terms."""
    signature = _signature(target)
    return {
        "name": target.name,
        "platform": _platform(target),
        "backend": "seqserve",
        "max_batch_size": 0,
        "input": [_configured(spec) for spec in signature.inputs],
        "output": [_configured(spec) for spec in signature.outputs],
    }


async def statistics(target: Target, metrics: MetricsOf) -> Statistics:
    """Return statistics of one model."""
    return {"model_stats": [_statistics(target, metrics)]}


async def all_statistics(registry: RegistryOf, metrics: MetricsOf) -> Statistics:
    """Return statistics of all models."""
    return {"model_stats": [_statistics(served, metrics) for served in registry.served()]}


async def infer(target: Target, body: InferRequest, context: Context, deadline: Deadline) -> Response:
    """Return the outputs of a model for a batch of inputs, as JSON or binary tensors.

    With the header `Inference-Header-Content-Length`, the body is so many bytes of JSON and then the binary tensors.
    """
    signature = _signature(target)
    expected = dict.fromkeys(spec.name for spec in signature.inputs)
    for tensor in body.inputs:
        if tensor.name not in expected:
            found = repr(tensor.name[:MAX_SHOWN])
            raise InvalidField("inputs", f"expected {', '.join(expected)}, found {found}")
    if len(body.inputs) > len(expected):
        raise InvalidField("inputs", f"expected one each of {', '.join(expected)}, found {len(body.inputs)}")
    outputs = {spec.name: spec for spec in signature.outputs}
    requested = [output.name for output in body.outputs] or list(outputs)
    for position, name in enumerate(requested):
        if name not in outputs or name in requested[:position]:
            found = repr(name[:MAX_SHOWN]) if name not in outputs else f"{name} twice"
            raise InvalidField("outputs", f"expected some of {', '.join(outputs)}, found {found}")
    if timeout_us := body.parameters.timeout:
        deadline = min(deadline, context.started + timeout_us / 1e6)
    with target:
        values = await signature.infer(Call(target, body, frozenset(requested), deadline))
    return tensors.response(body, target.name, target.version, [(outputs[name], values[name]) for name in requested])


async def index(body: RepositoryIndexRequest, registry: RegistryOf) -> Response:
    """List the models of the store."""
    found: list[RepositoryModel] = [
        {"name": served.name, "version": served.version, "state": "READY", "reason": ""} for served in registry.served()
    ]
    if not body.ready:
        found += [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason}
            for name, reason in registry.rejected.items()
        ]
    return JSONResponse(sorted(found, key=lambda model: model["name"]))


async def load(model: str, body: LoadRequest, registry: RegistryOf) -> Response:  # noqa: ARG001  # validated
    """Serve the version that the model's CURRENT names."""
    if model not in bundles.models(registry.store):
        raise UnknownModel(f"{model[:MAX_SHOWN]!r}: no such model")
    try:
        await versions.activate(registry, model, bundles.current(registry.store, model))
    except BundleError as error:
        raise Unservable(str(error)) from error
    return JSONResponse({})


async def unload(model: str, body: LoadRequest) -> Response:  # noqa: ARG001  # validated
    """Reject the request: a model is served while the store has it."""
    raise Malformed(f"{model[:MAX_SHOWN]}: unload: not supported; a model is served while the store has it")


def _signature(served: Served) -> Signature:
    """Return the tensors of the model's family. Raise UnknownModel for a family without."""
    signature = SIGNATURES.get(served.manifest.family)
    if signature is None:
        raise UnknownModel(f"{served.name}: models of the family {served.manifest.family} are not served as tensors")
    return signature


def _platform(served: Served) -> str:
    return f"seqserve_{served.manifest.family}"


def _configured(spec: Spec) -> TensorConfig:
    return {"name": spec.name, "data_type": TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"), "dims": list(spec.shape)}


def _statistics(served: Served, metrics: Metrics) -> ModelStatistics:
    totals = metrics.totals(served.name)
    queue = _duration(totals, "wait_seconds")
    steps = _duration(totals, "batch_seconds")
    failed = int(totals.get("refusals_total", 0))
    return {
        "name": served.name,
        "version": served.version,
        "inference_count": queue["count"],
        "execution_count": steps["count"],
        "inference_stats": {
            "success": {"count": queue["count"], "ns": queue["ns"] + steps["ns"]},
            "fail": {"count": failed, "ns": 0},
            "queue": queue,
            "compute_infer": steps,
        },
    }


def _duration(totals: dict[str, float], name: str) -> Duration:
    return {"count": int(totals.get(f"{name}_count", 0)), "ns": int(totals.get(f"{name}_sum", 0) * NANOSECONDS)}


def _cost(document: Any) -> int:
    """Return the units of a request: those of its texts, or of its images, as on the routes for them."""
    fields = document if isinstance(document, dict) else {}
    parameters = fields.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    inputs = fields.get("inputs")
    units = 0
    for tensor in inputs if isinstance(inputs, list) else []:
        if not isinstance(tensor, dict):
            continue
        shape, data = tensor.get("shape"), tensor.get("data")
        if tensor.get("name") == "text":
            in_json = costs.of_text({"data": data})
            units += len(data) // costs.CHARACTERS if isinstance(data, memoryview) else in_json
        elif isinstance(shape, list) and shape and type(shape[0]) is int and 0 < shape[0] <= costs.CHARACTERS:
            units += costs.of_images(shape[0], QueryParams({"beam": str(parameters.get("beam", ""))}))
    return units


DIALECT: Final = Dialect(routes, re.compile(r"\S+ /v2(/.*)?", re.DOTALL), ERRORS)
