"""The models of OpenAI's routes: GET /v1/models, and the choice of one for a request."""

from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias

from fastapi import Depends, Request
from typing_extensions import TypedDict

from app.api.http.context import RegistryOf
from app.api.http.problems import MAX_SHOWN
from app.api.openai.schemas import OpenAIModel, OpenAIModelList
from app.errors import InvalidField, UnknownModel
from app.runtime.registry import Registry, Served

LANGUAGE_MODEL: Final = "language_model"
CAPTIONS: Final = "captions"
ROUTES: Final = {
    LANGUAGE_MODEL: "POST /v1/completions",
    CAPTIONS: "POST /v1/chat/completions",
    "digits": "POST /digits",
}  # by family; these routes serve the first two


class Origin(TypedDict):
    """The fields that name the origin of an answer."""

    created: int
    model: str
    system_fingerprint: str


async def _path_model(request: Request) -> str | None:
    return request.path_params.get("model")


PathModel: TypeAlias = Annotated[str | None, Depends(_path_model)]  # of a route below /models/{model}


def choose(registry: Registry, path_model: str | None, model: str | None, family: str) -> Served:
    """Return the model that a request names, in the path or the body, or the family's first.

    Raise InvalidField if path and body differ, UnknownModel for a model of another family, with the route for it.
    """
    if path_model is not None and model not in (None, path_model):
        raise InvalidField("model", f"expected {path_model}, as in the path, found {str(model)[:MAX_SHOWN]!r}")
    name = path_model or model
    if name:
        found = registry.named(name)
        if found.manifest.family != family:
            route = ROUTES.get(found.manifest.family, "another API")
            raise UnknownModel(f"{name}: expected a model of the family {family}; for this one use {route}")
        return found
    return registry.get(None, family)


def origin(served: Served, now: float) -> Origin:
    """Return the origin of an answer made at `now`, a time of time.time."""
    return {
        "created": int(now),
        "model": served.name,
        "system_fingerprint": f"{served.name}@{served.version}",
    }


async def list_models(registry: RegistryOf) -> OpenAIModelList:
    """List the models that are ready and that these routes serve: language models and captioners."""
    if registry.unready:
        raise registry.unready
    served = [each for each in registry.served() if each.manifest.family in (LANGUAGE_MODEL, CAPTIONS)]
    return {"object": "list", "data": [_model(each) for each in served]}


async def retrieve_model(name: str, registry: RegistryOf) -> OpenAIModel:
    """Describe one of the models."""
    served = registry.named(name)
    if served.manifest.family not in (LANGUAGE_MODEL, CAPTIONS):
        raise UnknownModel(f"{name[:MAX_SHOWN]}: no such model; for this one use {ROUTES.get(served.manifest.family)}")
    return _model(served)


def _model(served: Served) -> OpenAIModel:
    created: Any = datetime.fromisoformat(served.manifest.created).timestamp()
    return {"id": served.name, "object": "model", "created": int(created), "owned_by": "seqserve"}
