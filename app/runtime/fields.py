"""Field types of payloads and answers, from which requests are validated, answers encoded and both documented."""

from functools import cache
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, TypeAdapter
from pydantic_core import PydanticCustomError

from app.errors import InvalidField


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "expected Unicode without unpaired surrogates") from error
    return text


def _whole(number: Any) -> Any:
    """Convert 2.0 to 2: JSON Schema, unlike pydantic's strict mode, counts it as an integer."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _all_sent(schema: dict[str, Any]) -> None:
    """Describe a schema's fields as always there, whatever they default to."""
    for field in schema["properties"].values():
        field.pop("default", None)
    schema["required"] = [*schema["properties"]]


WHOLE: Final = BeforeValidator(_whole)  # after the limits of the number
Count = Annotated[StrictInt, WHOLE]
Text = Annotated[StrictStr, AfterValidator(_unicode)]  # JSON can escape an unpaired surrogate
Probability = Annotated[float, Field(ge=0, le=1)]
LogProbability = Annotated[float, Field(le=0, description="Natural logarithm of the probability.")]

PAYLOAD: Final = ConfigDict(extra="forbid")  # of a payload whose fields are those of a request
ANSWER: Final = ConfigDict(json_schema_extra=_all_sent)  # of an answer with defaults


class Limits(NamedTuple):
    """The limits of a number, and its default."""

    least: int
    most: int
    default: int | None


def require_ranges(payload: Any, *, capped: bool = True) -> None:
    """Raise InvalidField for a number outside the limits of its field; only below them unless `capped`."""
    for name, (least, most, _) in limits(type(payload)).items():  # type: ignore[arg-type]  # a class is hashable
        value = getattr(payload, name)
        if value is not None and (value < least or (capped and value > most)):
            expected = f"{least} to {most}" if capped else f"at least {least}"
            raise InvalidField(name, f"expected {expected}, found {value}")


@cache
def limits(payload: type) -> dict[str, Limits]:
    """Return the limits of a payload's numbers by field."""
    fields = TypeAdapter(payload).json_schema()["properties"]
    numbers = {name: field.get("anyOf", [field])[0] for name, field in fields.items()}  # that may be null
    return {
        name: Limits(number["minimum"], number["maximum"], number.get("default"))
        for name, number in numbers.items()
        if {"minimum", "maximum"} <= number.keys()
    }
