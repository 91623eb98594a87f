"""Requests and answers of OpenAI's APIs. Fields that would change an answer and can't be honoured are rejected."""

from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import AfterValidator, Field, StrictInt, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from app.api.http.fields import TolerantModel
from app.errors import InvalidField
from app.runtime.fields import WHOLE, Count, Text

MAX_CHOICES = 256  # of all prompts of a request
MAX_STOPS = 16
Zero = Annotated[float, Field(ge=0, le=0, description="Not supported.")]


def _prompts(prompt: Any) -> list[str | list[int]]:
    """Return the prompts, texts or token ids each."""
    prompts = prompt if isinstance(prompt, list) and prompt and not _is_id(prompt[0]) else [prompt]
    ids = all(isinstance(each, list) and all(map(_is_id, each)) for each in prompts)
    if prompt == [] or not (ids or all(isinstance(each, str) for each in prompts)):
        raise PydanticCustomError("prompt", "expected a text, token ids, or a list of either")
    if len(prompts) > MAX_CHOICES:
        raise PydanticCustomError("prompt", f"expected at most {MAX_CHOICES} prompts, found {len(prompts)}")
    if ids:
        return [[int(token) for token in each] for each in prompts]
    try:
        for each in prompts:
            each.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "expected Unicode without unpaired surrogates") from error
    return prompts


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer())


def _stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(one, str) and one for one in stops):
        raise PydanticCustomError("stop", f"expected a text or at most {MAX_STOPS} texts, none of them empty")
    return stops


IDS = {"type": "array", "items": {"type": "integer"}}
PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_CHOICES},
        IDS | {"minItems": 1},
        {"type": "array", "items": IDS, "minItems": 1, "maxItems": MAX_CHOICES},
    ],
    "description": "A text, token ids, or several of either.",
}
NOT_EMPTY = {"type": "string", "minLength": 1}
STOP_SCHEMA = {"anyOf": [NOT_EMPTY, {"type": "array", "items": NOT_EMPTY, "maxItems": MAX_STOPS}]}


class StreamOptions(TolerantModel):
    """Options of a stream."""

    include_usage: bool = Field(default=False, description="Send a last chunk with the usage.")


class CompletionRequest(TolerantModel):
    """A request to continue prompts, or to score them: `echo` with `logprobs` and `max_tokens` 0."""

    model: Text | None = Field(default=None, description="By default the first language model by name.")
    prompt: Annotated[Any, AfterValidator(_prompts), WithJsonSchema(PROMPT_SCHEMA)]
    max_tokens: Count = Field(default=16, ge=0, le=4096)
    temperature: float = Field(default=1, ge=0, le=2, description="0 chooses the likeliest token.")
    top_p: float = Field(default=1, gt=0, le=1)
    seed: Count | None = Field(default=None, description="Repeats a sample, whatever shares its batch.")
    n: Count = Field(default=1, ge=1, le=16, description="Choices of each prompt.")
    stop: Annotated[Any, AfterValidator(_stops), WithJsonSchema(STOP_SCHEMA)] = Field(default_factory=list)
    logprobs: Annotated[StrictInt, Field(ge=0, le=20), WHOLE] | None = Field(
        default=None, description="Likeliest tokens at each position."
    )
    echo: bool = Field(default=False, description="Return the prompt too.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    ignore_eos: bool = Field(default=False, description="Go on after the end of a sentence.")
    best_of: Count | None = Field(default=None, description="Not supported, except n.")
    suffix: Annotated[str, Field(max_length=0, description="Not supported.")] = ""
    logit_bias: Annotated[dict[str, Any], Field(max_length=0, description="Not supported.")] = Field(
        default_factory=dict
    )
    presence_penalty: Zero = 0
    frequency_penalty: Zero = 0
    min_p: Zero = 0
    top_k: Annotated[Count, Field(ge=-1, le=0, description="Not supported.")] = 0
    repetition_penalty: Annotated[float, Field(ge=1, le=1, description="Not supported.")] = 1

    @model_validator(mode="after")
    def _require_choices(self) -> Self:
        if self.best_of not in (None, self.n):
            raise InvalidField("best_of", f"expected {self.n}, which is n, or null, found {self.best_of}")
        if len(self.prompt) * self.n > MAX_CHOICES:
            found = f"{len(self.prompt)} prompts of {self.n} choices"
            raise InvalidField("n", f"expected at most {MAX_CHOICES} choices of all prompts, found {found}")
        return self


class LogProbs(TypedDict):
    """The tokens of a choice, four lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One continuation."""

    text: str
    index: int
    logprobs: LogProbs | None
    finish_reason: Literal["stop", "length"] | None


class PromptDetails(TypedDict):
    """Details of the tokens of the prompts."""

    cached_tokens: int


class Usage(TypedDict):
    """Numbers of tokens; a prompt counts once for all of its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[PromptDetails]


class CompletionAnswer(TypedDict):
    """The continuations, or of a stream a part of one of them."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage]


class OpenAIModel(TypedDict):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModelList(TypedDict):
    """The models that these routes serve."""

    object: Literal["list"]
    data: list[OpenAIModel]


class TokenizerInfo(TypedDict):
    """The special tokens of a model."""

    tokenizer_class: str
    eos_token: str
    bos_token: str | None
    unk_token: str | None
    pad_token: str | None
    chat_template: str | None


class TokenizeRequest(TolerantModel):
    """A request for the ids of a text."""

    prompt: Text
    add_special_tokens: bool = Field(default=False, description="Without effect.")
    model: Text | None = None


class TokenizeAnswer(TypedDict):
    """The ids of a text, as a completion reads them."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str]


class DetokenizeRequest(TolerantModel):
    """A request for the text of ids."""

    tokens: list[Annotated[Count, Field(ge=0)]]
    model: Text | None = None


class DetokenizeAnswer(TypedDict):
    """A text that is read as the ids."""

    prompt: str


class ResponseFormat(TolerantModel):
    """The format of a chat completion: text alone."""

    type: Literal["text"] = "text"


class ChatRequest(TolerantModel):
    """A request to caption the images of the user's messages; their text is not read."""

    model: Text | None = Field(default=None, description="By default the first captioner by name.")
    messages: list[Any] = Field(description="Images as data URLs in base64: nothing is fetched.")
    max_tokens: Count | None = Field(default=None, ge=1, description="Largest number of words.")
    max_completion_tokens: Count | None = Field(default=None, ge=1, description="Largest number of words.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[Count, Field(ge=1, le=1, description="Not supported, except 1.")] = 1
    tools: Annotated[list[Any], Field(max_length=0, description="Not supported.")] = Field(default_factory=list)
    functions: Annotated[list[Any], Field(max_length=0, description="Not supported.")] = Field(default_factory=list)
    response_format: ResponseFormat = ResponseFormat()
    logprobs: bool = Field(default=False, description="Not supported.", json_schema_extra={"const": False})
    audio: Annotated[Any, Field(description="Not supported.")] = None

    @field_validator("audio", "logprobs")
    @classmethod
    def _reject(cls, value: Any) -> Any:
        if value is not False:
            raise PydanticCustomError("unsupported", "not supported")
        return value


class Message(TypedDict):
    """The answer of the assistant."""

    role: Literal["assistant"]
    content: str


class ChatChoice(TypedDict):
    """The one answer."""

    index: int
    message: Message
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(TypedDict):
    """The captions, a line each."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
