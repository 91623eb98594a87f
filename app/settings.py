"""The environment (SEQSERVE_*), read once into one frozen object."""

import difflib
import os
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import DirectoryPath, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import SettingsError

PREFIX: Final = "SEQSERVE_"


def _default_store() -> Path:
    """`models_store` where the command was typed, else beside the package."""
    here = Path("models_store")
    return here if here.is_dir() else Path(__file__).parents[1] / "models_store"


class Settings(BaseSettings):
    """How to serve. Each field is also a variable: `port` is SEQSERVE_PORT."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen at.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen at; 0 takes any free one.")
    store: DirectoryPath = Field(
        default_factory=_default_store,
        description="Folder of published bundles; by default models_store here, else beside the package.",
    )
    threads: int = Field(1, ge=1, le=256, description="Threads of one model's inference.")
    queue_size: int = Field(
        256, ge=1, description="Requests of one model that may wait for a turn; one more is refused."
    )
    batch_size: int = Field(32, ge=2, le=1024, description="Requests of one model that are computed together at most.")
    cache_mb: int = Field(64, ge=0, description="MiB of remembered states of one model; 0 remembers none.")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Largest body that /perplexity takes, in bytes.")
    max_upload_bytes: int = Field(
        64 * 2**20, ge=1024, description="Largest body that /digits and /captions take, in bytes."
    )
    request_timeout_s: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="Seconds after which a request is given up."
    )
    grace_s: int = Field(30, ge=0, description="Seconds that accepted requests have to finish in when told to stop.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity logged.")

    def __init__(self, **values: Any) -> None:
        """Read the environment; `values` go before it. Raise SettingsError for a wrong value or an unknown variable."""
        _refuse_unknown([name for name in os.environ if name.upper().startswith(PREFIX)])
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError("; ".join(_fault(fault) for fault in error.errors())) from error

    @property
    def url(self) -> str:
        """Where the service is found."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def _refuse_unknown(names: list[str]) -> None:
    known = [PREFIX + field.upper() for field in Settings.model_fields]
    for name in sorted(set(names)):
        if name.upper() not in known:
            closest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"{name}: no such setting; the closest is {closest}")


def _fault(fault: Any) -> str:
    name = ".".join(map(str, fault["loc"]))
    return f"{PREFIX}{name.upper()}: {fault['msg']}, found {str(fault['input'])[:80]!r}"
