"""Requests and answers of the operations endpoints."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from app.api.http.fields import RequestModel
from app.runtime.fields import Text


class Alive(TypedDict):
    """The answer of /livez: the process is alive."""

    status: Literal["alive"]


class ModelState(TypedDict):
    """The readiness of one model, with the reason if it is not ready."""

    name: str
    ready: bool
    reason: str | None


class Readiness(TypedDict):
    """The answer of /readyz: every model is ready."""

    status: Literal["ready"]
    models: list[ModelState]


class ModelSummary(ModelState):
    """One model of the list; a model that is not ready has only a name and a reason."""

    family: str | None
    version: Annotated[str | None, Field(description="The served version.")]
    versions: Annotated[list[str] | None, Field(description="The versions on disk.")]
    cell: Annotated[str | None, Field(description="The model's recurrent cell.")]
    parameters: int | None
    served: Annotated[Literal["int8", "fp32"] | None, Field(description="The served precision.")]
    metrics: dict[str, float] | None


class ModelList(TypedDict):
    """All models, by name."""

    models: list[ModelSummary]


class Activate(RequestModel):
    """A request to serve another version of a model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": "20261124"}]})

    version: Text = Field(description="One of the versions on disk.")


class ActivateAnswer(TypedDict):
    """The version served from now on."""

    model: str
    version: str
    previous: Annotated[
        str | None, Field(description="The version served before, if any; the same version if nothing changed.")
    ]
    persisted: Annotated[bool, Field(description="The version will be served after a restart too.")]
    reason: Annotated[str | None, Field(description="Reason why the choice could not be persisted.")]


class Sizes(TypedDict):
    """Bytes on disk."""

    files: dict[str, int]
    total: int


class Headline(TypedDict):
    """The metric by which models of a family are compared."""

    metric: Annotated[str, Field(description="Its name among `metrics`.")]
    name: str
    text: Annotated[str, Field(description="Its value, formatted.")]
    details: Annotated[str, Field(description="The data it was measured on, and which values are better.")]


class Model(TypedDict):
    """The contents of a model's manifest."""

    name: str
    family: str
    version: str
    versions: list[str]
    created: str
    commit: str | None
    config: dict[str, Any]
    normalisation: str | None
    vocabulary_sha256: str | None
    data: Annotated[dict[str, Any], Field(description="The corpus: name, terms of use, checksums of its files.")]
    metrics: dict[str, float]
    headline: Annotated[Headline | None, Field(description="The metric to compare it by, if it has it.")]
    calibration: Annotated[
        dict[str, float], Field(description="Calibration parameters, applied to the graph's outputs.")
    ]
    parameters: int
    served: Literal["int8", "fp32"]
    sizes: Sizes
    card: Annotated[str | None, Field(description="The model card, in Markdown.")]
