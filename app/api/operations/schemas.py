"""Requests and answers of the operations endpoints."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from app.api.http.fields import RequestModel, Text


class Alive(TypedDict):
    """The process answers."""

    status: Literal["alive"]


class ModelState(TypedDict):
    """Whether a model answers, and why not."""

    name: str
    ready: bool
    reason: str | None


class Readiness(TypedDict):
    """Every model answers."""

    status: Literal["ready"]
    models: list[ModelState]


class ModelSummary(ModelState):
    """One model of the list; of one that is not ready, nothing but its name and the reason is known."""

    family: str | None
    version: Annotated[str | None, Field(description="The version that answers.")]
    versions: Annotated[list[str] | None, Field(description="The versions on disk.")]
    cell: Annotated[str | None, Field(description="The recurrent cell that the model is made of.")]
    parameters: int | None
    served: Annotated[Literal["int8", "fp32"] | None, Field(description="The arithmetic that answers.")]
    metrics: dict[str, float] | None


class ModelList(TypedDict):
    """All models, by name."""

    models: list[ModelSummary]


class Activate(RequestModel):
    """Which version of a model shall answer?"""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": "20261124"}]})

    version: Text = Field(description="One of the versions on disk.")


class ActivateAnswer(TypedDict):
    """What answers from now on."""

    model: str
    version: str
    previous: Annotated[
        str | None, Field(description="The version that answered before, if one did; the same if nothing was to do.")
    ]
    persisted: Annotated[bool, Field(description="Whether it answers after a restart too.")]
    reason: Annotated[str | None, Field(description="Why it wouldn't.")]


class Sizes(TypedDict):
    """Bytes on disk."""

    files: dict[str, int]
    total: int


class Model(TypedDict):
    """What a model's bundle says of it."""

    name: str
    family: str
    version: str
    versions: list[str]
    created: str
    commit: str | None
    config: dict[str, Any]
    normalisation: str | None
    vocabulary_sha256: str | None
    data: Annotated[dict[str, Any], Field(description="The corpus: its name, its terms, checksums of its files.")]
    metrics: dict[str, float]
    calibration: Annotated[dict[str, float], Field(description="What turns the graph's numbers into answers.")]
    parameters: int
    served: Literal["int8", "fp32"]
    sizes: Sizes
    card: Annotated[str | None, Field(description="The model card, in Markdown.")]
