"""Field types that the requests of every dialect are made of, beside those of payloads."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app.runtime.fields import Text

NULL: Final = {"type": "null"}

ModelName = Annotated[
    Text | None,
    Field(description="The model to use; by default that of SEQSERVE_DEFAULT_MODELS, else the first by name."),
]


class TolerantModel(BaseModel):
    """Base of request models of other APIs: unknown fields are ignored, and null is as if not sent."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            return {name: value for name, value in fields.items() if value is not None}
        return fields

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema, in which all optional fields may be null."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, field in schema.get("properties", {}).items():
            if name not in schema.get("required", ()) and NULL not in field.get("anyOf", ()):
                schema["properties"][name] = {"anyOf": [field, NULL]}
        return schema


class RequestModel(BaseModel):
    """Base of request models: unknown fields and conversions between types are rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
