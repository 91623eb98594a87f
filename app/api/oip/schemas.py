"""Requests and answers of the Open Inference Protocol."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, StrictInt, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from app.api.http.fields import TolerantModel
from app.runtime.families.captions import Beam
from app.runtime.families.language_model import TopK
from app.runtime.fields import WHOLE, Count, Text
from app.runtime.scoring import Mode

MAX_TENSORS = 16  # of one request
MAX_SIZE = 2**63 - 1  # of a number of the protocol

Size = Annotated[StrictInt, Field(ge=0, le=MAX_SIZE), WHOLE]


class TensorParameters(TolerantModel):
    """Parameters of one tensor."""

    binary_data_size: Size | None = Field(default=None, description="Bytes of the tensor after the JSON.")
    binary_data: bool | None = Field(default=None, description="Return this output after the JSON, in binary.")
    classification: Count = Field(default=0, le=0, description="Not supported.")
    shared_memory_region: Annotated[str, Field(max_length=0, description="Not supported.")] = ""


class InputTensor(TolerantModel):
    """One input; its data is in JSON, or after it in binary."""

    name: Text
    shape: list[Size] = Field(max_length=8)
    datatype: Text
    data: Any = Field(default=None, description="Values in row-major order, nested or flat. An image is in base64.")
    parameters: TensorParameters = TensorParameters()


class RequestedOutput(TolerantModel):
    """An output to compute."""

    name: Text
    parameters: TensorParameters = TensorParameters()


class InferParameters(TolerantModel):
    """Parameters of a request; those of other model families have no effect."""

    top_k: TopK = Field(default=5, description="Number of suggestions.")
    complete: bool = Field(default=False, description="Complete the last, partly typed word of a text.")
    mode: Mode = Field(default="document", description="See /perplexity.")
    beam: Annotated[Beam, WHOLE] = Field(default=3, description="Beam width of captions.")
    timeout: Size = Field(default=0, description="Microseconds from arrival to deadline; 0: no other.")
    binary_data_output: bool = Field(default=False, description="Return all outputs after the JSON, in binary.")
    sequence_id: int | Text = Field(default=0, description="Not supported: a request has the whole text.")

    @field_validator("sequence_id")
    @classmethod
    def _require_none(cls, sequence: int | str) -> int | str:
        if sequence not in (0, ""):
            raise PydanticCustomError("sequence", "expected 0: sequences are not supported")
        return sequence


class InferRequest(TolerantModel):
    """A request for the outputs of one model."""

    id: Text | None = Field(default=None, description="Returned with the answer.")
    inputs: list[InputTensor] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: list[RequestedOutput] = Field(default_factory=list, max_length=MAX_TENSORS, description="Empty: all.")
    parameters: InferParameters = InferParameters()


class RepositoryIndexRequest(TolerantModel):
    """A request for the models of the store."""

    ready: bool = Field(default=False, description="Only models that are ready.")


class LoadParameters(TolerantModel):
    """Parameters of loading a model."""

    config: Annotated[Any, Field(description="Not supported.")] = None

    @field_validator("config")
    @classmethod
    def _reject(cls, _: Any) -> Any:
        raise PydanticCustomError("config", "not supported: a model is served as it was published")


class LoadRequest(TolerantModel):
    """A request to serve the version that the model's CURRENT names."""

    parameters: LoadParameters = LoadParameters()


class Failure(TypedDict):
    """An error."""

    error: str


class Live(TypedDict):
    """The liveness of the server."""

    live: bool


class Ready(TypedDict):
    """The readiness of the server."""

    ready: bool


class Server(TypedDict):
    """Metadata of the server."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(TypedDict):
    """The readiness of a model."""

    name: str
    ready: bool


class TensorMetadata(TypedDict):
    """The type of a tensor; -1 is a variable dimension, the first one the batch."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    """The types of a model's tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(TypedDict):
    """The type of a tensor in Triton's terms."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(TypedDict):
    """A model's configuration in Triton's terms."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]


class Duration(TypedDict):
    """A number of events, and their total duration in nanoseconds."""

    count: int
    ns: int


class InferenceStatistics(TypedDict):
    """Statistics of examples: a text or an image each."""

    success: Annotated[Duration, Field(description="Examples that reached a step: waiting and steps.")]
    fail: Annotated[Duration, Field(description="Examples without an answer: overloaded, expired, cancelled.")]
    queue: Annotated[Duration, Field(description="Waiting for the first step.")]
    compute_infer: Annotated[Duration, Field(description="Scheduling steps; one step may advance many examples.")]


class ModelStatistics(TypedDict):
    """Statistics of one model since the server started."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics


class Statistics(TypedDict):
    """Statistics of models."""

    model_stats: list[ModelStatistics]


class RepositoryModel(TypedDict):
    """A model of the store."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class OutputTensor(TypedDict):
    """One output; its data is here, or after the JSON in binary."""

    name: str
    datatype: str
    shape: list[int]
    data: NotRequired[list[Any]]
    parameters: NotRequired[dict[str, int]]


class InferAnswer(TypedDict):
    """The outputs of a model."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    outputs: list[OutputTensor]
