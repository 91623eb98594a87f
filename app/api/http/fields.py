"""Field types that the requests and answers of every dialect are made of."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

NOT_BLANK: Final = r"[^\s\x1c-\x1f\x85]"  # as Python and then ECMA sees white space


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "expected Unicode without unpaired surrogates") from error
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "expected some words")
    return text


def _whole(number: Any) -> Any:
    """Convert 2.0 to 2: JSON Schema, unlike pydantic's strict mode, counts it as an integer."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


Count = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, AfterValidator(_unicode)]  # JSON can escape an unpaired surrogate
Words = Annotated[Text, AfterValidator(_not_blank), Field(json_schema_extra={"minLength": 1, "pattern": NOT_BLANK})]
ModelName = Annotated[Text | None, Field(description="The model to use; by default the first by name.")]
Probability = Annotated[float, Field(ge=0, le=1)]
LogProbability = Annotated[float, Field(le=0, description="Natural logarithm of the probability.")]


class RequestModel(BaseModel):
    """Base of request models: unknown fields and conversions between types are rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
