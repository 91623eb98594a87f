"""The environment (SEQSERVE_*), read once into one frozen object."""

import difflib
import ipaddress
import os
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import DirectoryPath, Field, ValidationError, field_validator, model_validator
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
    workers: int = Field(
        1, ge=1, le=64, description="Processes that answer, each with its own queues, threads and remembered states."
    )
    threads: int = Field(1, ge=1, le=256, description="Threads of one model's inference.")
    queue_size: int = Field(
        256, ge=1, description="Requests of one model that may wait for a turn; one more is refused."
    )
    batch_size: int = Field(32, ge=2, le=1024, description="Requests of one model that are computed together at most.")
    cache_mb: int = Field(
        64, ge=0, description="MiB of remembered states of one model in one worker; 0 remembers none."
    )
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Largest body that /perplexity takes, in bytes.")
    max_upload_bytes: int = Field(
        64 * 2**20, ge=1024, description="Largest body that /digits and /captions take, in bytes."
    )
    request_timeout_s: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="Seconds after which a request is given up."
    )
    grace_s: int = Field(30, ge=0, description="Seconds that accepted requests have to finish in when told to stop.")
    max_connections: int = Field(900, ge=1, description="Connections open at once to one worker; one more is refused.")
    api_keys_file: Path | None = Field(
        None, description="File of API keys, made by `seqserve keys new`; without one, predictions are open to all."
    )
    rate_limit: str = Field("", description="Units of cost that a caller has, as 600/minute; unlimited if empty.")
    rate_storage: str = Field(
        "memory://",
        description="Where these are counted: here, or for several workers or servers in redis://host:6379.",
    )
    trusted_proxies: str = Field(
        "", description="Addresses or networks of proxies whose X-Forwarded-For is believed, parted by commas."
    )
    cors_origins: str = Field(
        "", description="Origins whose pages may ask from a browser, parted by commas; * is any, none if empty."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity logged.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How the log is written; auto is text on a terminal and JSON elsewhere."
    )
    traces_endpoint: str = Field(
        "", description="Where traces are sent (OTLP over HTTP), as http://host:4318/v1/traces; nowhere if empty."
    )

    def __init__(self, **values: Any) -> None:
        """Read the environment; `values` go before it. Raise SettingsError for a wrong value or an unknown variable."""
        _refuse_unknown([name for name in os.environ if name.upper().startswith(PREFIX)])
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError("; ".join(_fault(fault) for fault in error.errors())) from error

    @field_validator("trusted_proxies")
    @classmethod
    def _require_networks(cls, proxies: str) -> str:
        for proxy in _parts(proxies):
            ipaddress.ip_network(proxy)
        return proxies

    @field_validator("cors_origins")
    @classmethod
    def _require_origins(cls, origins: str) -> str:
        for origin in _parts(origins):
            found = urlsplit(origin)
            if origin != "*" and f"{found.scheme}://{found.netloc}" != origin:
                raise ValueError(f"expected origins like https://example.org, found {origin!r}")
        return origins

    @model_validator(mode="after")
    def _require_joint_rates(self) -> Self:
        if self.workers > 1 and self.rate_limit and self.rate_storage.startswith("memory"):
            raise SettingsError(
                f"{PREFIX}RATE_STORAGE: expected redis://host:6379 for the rates of {PREFIX}WORKERS={self.workers}, "
                f"found {self.rate_storage!r}, where each worker would count by itself"
            )
        return self

    @property
    def origins(self) -> list[str]:
        """Those of cors_origins."""
        return _parts(self.cors_origins)

    @property
    def is_local(self) -> bool:
        """Whether no other machine reaches the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """Where the service is found."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def _parts(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


def _refuse_unknown(names: list[str]) -> None:
    known = [PREFIX + field.upper() for field in Settings.model_fields]
    for name in sorted(set(names)):
        if name.upper() not in known:
            closest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"{name}: no such setting; the closest is {closest}")


def _fault(fault: Any) -> str:
    name = ".".join(map(str, fault["loc"]))
    return f"{PREFIX}{name.upper()}: {fault['msg']}, found {str(fault['input'])[:80]!r}"
