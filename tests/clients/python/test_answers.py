"""The client's types against the schemas of the server's OpenAPI document."""

import dataclasses
import json
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from seqserve import answers, calls, errors

from app.api.http.problems import KINDS
from app.api.native.schemas import CaptionWord
from app.errors import BundleError, CorpusError, SettingsError, UnknownVersion, Unservable
from tests.documents import OPENAPI

DOCUMENT: Final[dict[str, Any]] = json.loads(OPENAPI.read_text(encoding="utf-8"))
SCHEMAS: Final[dict[str, Any]] = DOCUMENT["components"]["schemas"]
PRIMITIVES: Final = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
DATACLASSES: Final = {name: kind for name, kind in vars(answers).items() if dataclasses.is_dataclass(kind)}
STREAMED: Final = "CaptionWord"  # data of an event, so not in the OpenAPI document
OPTIONS: Final = {
    "NextWord": (calls.NextWordOptions, {"text"}),
    "Perplexity": (calls.PerplexityOptions, {"text", "texts"}),
}
QUERIES: Final[dict[str, Any]] = {"/digits": calls.DigitsOptions, "/captions": calls.CaptionsOptions}


def shape(kind: Any) -> Any:
    """Return a type as the part of a JSON schema that a client sees."""
    if kind in PRIMITIVES:
        return PRIMITIVES[kind]
    if dataclasses.is_dataclass(kind):
        return kind.__name__  # type: ignore[union-attr]  # a class
    match get_origin(kind), get_args(kind):
        case (origin, members) if origin in (UnionType, Union):
            return {shape(member) for member in members}
        case (origin, (member,)) if origin is list:
            return ("array", shape(member))
        case (origin, (_, member)) if origin is dict:
            return ("object", shape(member))
        case (origin, values) if origin is Literal:
            return ("enum", *values)
    raise TypeError(f"{kind}: expected a type of JSON")


def schema_shape(schema: dict[str, Any]) -> Any:
    """Return a JSON schema in the form of `shape`."""
    match schema:
        case {"$ref": reference}:
            return reference.rpartition("/")[2]
        case {"anyOf": members}:
            return {schema_shape(member) for member in members}
        case {"enum": values}:
            return ("enum", *values)
        case {"type": "array", "items": items}:
            return ("array", schema_shape(items))
        case {"type": "object", "additionalProperties": values}:
            return ("object", schema_shape(values))
    return schema["type"]


def schema_shapes(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: schema_shape(member) for name, member in schema["properties"].items()}


@pytest.mark.parametrize("name", sorted({*DATACLASSES} - {STREAMED}))
def test_a_dataclass_has_the_members_of_its_schema(name: str) -> None:
    schema = SCHEMAS[name]
    optional = {field.name for field in dataclasses.fields(DATACLASSES[name]) if field.default is None}
    assert optional == {*schema["properties"]} - {*schema["required"]}
    expected = {
        member: {"null"} | (declared if isinstance(declared, set) else {declared}) if member in optional else declared
        for member, declared in schema_shapes(schema).items()
    }
    assert {member: shape(hint) for member, hint in get_type_hints(DATACLASSES[name]).items()} == expected


def test_the_data_of_a_word_event_is_the_servers() -> None:
    assert get_type_hints(answers.CaptionWord) == get_type_hints(CaptionWord)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_json_body_are_those_of_its_schema(name: str) -> None:
    options, arguments = OPTIONS[name]
    found = {member: shape(hint) for member, hint in get_type_hints(options).items()}
    assert found == {name: shape for name, shape in schema_shapes(SCHEMAS[name]).items() if name not in arguments}


@pytest.mark.parametrize("path", QUERIES)
def test_options_of_a_query_are_its_parameters(path: str) -> None:
    parameters = DOCUMENT["paths"][path]["post"]["parameters"]
    declared = {one["name"]: schema_shape(one["schema"]) for one in parameters if one["in"] == "query"}
    found = {name: shape(hint) for name, hint in get_type_hints(QUERIES[path]).items()}
    for name, kind in declared.items():
        if isinstance(kind, set):
            (declared[name],) = kind - {"null"}  # a query can't hold a null
    assert declared == found


def test_every_answer_of_a_call_is_a_type_of_the_client() -> None:
    paths = {"/next-word": "post", "/perplexity": "post", "/digits": "post", "/captions": "post", "/models": "get"}
    for path, method in paths.items():
        content = DOCUMENT["paths"][path][method]["responses"]["200"]["content"]["application/json"]
        assert schema_shape(content["schema"]) in DATACLASSES


def test_every_problem_of_a_call_has_an_exception_of_its_status() -> None:
    others = {BundleError, CorpusError, SettingsError, UnknownVersion, Unservable}  # of no call of the client
    assert {kind.type for error, kind in KINDS.items() if error not in others} == {*errors.TYPES}
    for kind in KINDS.values():
        if kind.type in errors.TYPES:
            assert issubclass(errors.TYPES[kind.type], errors.STATUSES[kind.status])


def test_unknown_members_are_ignored_and_missing_ones_reported() -> None:
    assert answers.decode(answers.CaptionWord, {"word": "dog", "new": 1}) == answers.CaptionWord("dog")
    with pytest.raises(KeyError, match="word"):
        answers.decode(answers.CaptionWord, {})
