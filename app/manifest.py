"""The manifest of a bundle: its metadata and its files."""

import json
import re
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

FORMAT: Final = 1
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # of a model or a version


def file_name(name: str) -> str:
    """Return a plain file name; raise ValueError for one that could leave the bundle's folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name in (MANIFEST, SEAL):
        raise ValueError(f"expected a plain file name other than {MANIFEST} and {SEAL}, found {name!r}")
    return name


def store_name(name: str) -> str:
    """Return a model's or version's name; raise ValueError if it is invalid."""
    if not NAME.fullmatch(name):
        raise ValueError(f"expected a name of the form {NAME.pattern}, found {name!r}")
    return name


def _json_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration; raise ValueError for a number or a string that JSON in UTF-8 can't express."""
    json.dumps(config, allow_nan=False, ensure_ascii=False).encode()
    return config


FileName = Annotated[str, AfterValidator(file_name)]
StoreName = Annotated[str, AfterValidator(store_name)]
FamilyName: TypeAlias = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(_Entry):
    """One file of a bundle as it was published."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0, le=1 << 40)]


class CorpusEntry(_Entry):
    """The training data, its terms of use, and the checksums of the raw files by name."""

    name: str
    terms: str
    sha256: dict[str, Sha256]


class Manifest(_Entry):
    """A bundle's metadata. Strict: no other fields, no type conversions, no infinities or NaN.

    A family bounds the numbers that its predictor uses: those of `config` and `calibration`.
    """

    format: Literal[1]
    family: FamilyName
    model: StoreName
    version: StoreName
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]  # ISO 8601, UTC
    commit: str | None
    config: Annotated[dict[str, Any], AfterValidator(_json_values)]
    normalisation: str | None
    vocabulary_sha256: Sha256 | None
    corpus: CorpusEntry
    metrics: dict[str, float]
    calibration: dict[str, float] = Field(default_factory=dict)  # parameters that map the graph's outputs to answers
    parameters: Annotated[int, Field(ge=0, le=1 << 48)]
    served: Literal["int8", "fp32"]
    files: dict[FileName, FileEntry]

    @property
    def cell(self) -> str:
        """The model's recurrent cell; `lstm` in bundles of before the choice."""
        return str(self.config.get("cell", "lstm"))
