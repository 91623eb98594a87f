"""The environment (SEQSERVE_*), read once into one frozen object."""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import DirectoryPath, Field, FilePath, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import SettingsError

PREFIX: Final = "SEQSERVE_"
# Kubernetes sets these in every pod beside a Service whose name starts with seqserve, SEQSERVE_PORT=tcp://… among them.
SERVICE_VARIABLE: Final = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://.*")


def _default_store() -> Path:
    """Return `models_store` in the working directory if there is one, else beside the package."""
    here = Path("models_store")
    return here if here.is_dir() else Path(__file__).parents[1] / "models_store"


class Settings(BaseSettings):
    """Settings of the server. Each field is read from an environment variable: `port` from SEQSERVE_PORT."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; :: is every address of IPv6 and IPv4."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    unix_socket: Path | None = Field(None, description="Path of a Unix socket to listen on, in place of host and port.")
    root_path: str = Field(
        "",
        pattern=r"^(/[\w.~-]+)*$",
        description="Path prefix under which a proxy serves the application, as /seqserve.",
    )
    store: DirectoryPath = Field(
        default_factory=_default_store,
        description="Folder of published bundles; by default ./models_store, else the one beside the package.",
    )
    default_models: str = Field(
        "",
        description="Comma-separated family=model pairs: the models of requests that name none, as "
        "language_model=ptb,digits=digits. In other families it is the first model by name.",
    )
    workers: int = Field(
        1, ge=1, le=64, description="Worker processes, each with its own queues, threads and state cache."
    )
    threads: int = Field(1, ge=1, le=256, description="Inference threads per model.")
    queue_size: int = Field(
        256, ge=1, description="Requests that may wait in a model's queue; more are rejected with 503."
    )
    batch_size: int = Field(32, ge=2, le=1024, description="Largest batch of one model.")
    cache_mb: int = Field(64, ge=0, description="State cache of one model in one worker, in MiB; 0 turns it off.")
    blocked_words_file: FilePath | None = Field(
        None, description="File of further words never to suggest, one a line, beside the slurs that are built in."
    )
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Largest request body of /perplexity, in bytes.")
    max_upload_bytes: int = Field(
        64 * 2**20, ge=1024, description="Largest request body of /digits and /captions, in bytes."
    )
    request_timeout_s: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="Seconds after which a request times out."
    )
    grace_s: int = Field(30, ge=0, description="Seconds that accepted requests have to finish after SIGTERM.")
    max_connections: int = Field(
        900, ge=1, description="Connections open at once to one worker; more are rejected with 503."
    )
    max_connections_per_address: int = Field(
        600,
        ge=1,
        description="Connections of one address (of IPv6, a /64 network) to one worker; proxies have no such limit.",
    )
    keep_alive_s: int = Field(
        75, ge=1, description="Seconds that an idle connection stays open; more than a load balancer keeps it."
    )
    api_keys_file: Path | None = Field(
        None, description="File of API keys, created by `seqserve keys new`; without one, predictions need no key."
    )
    rate_limit: str = Field("", description="Cost units per client, as 600/minute; unlimited if empty.")
    rate_storage: str = Field(
        "memory://",
        description="Storage of rate limits: memory://, or redis://host:6379 to share them between workers or servers.",
    )
    trusted_proxies: str = Field(
        "", description="Comma-separated addresses or networks of proxies whose X-Forwarded-For is trusted."
    )
    cors_origins: str = Field("", description="Comma-separated origins allowed by CORS; * allows any, empty none.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level of the log.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Format of the log; auto is text on a terminal and JSON elsewhere."
    )
    traces_endpoint: str = Field(
        "", description="OTLP/HTTP endpoint for traces, as http://host:4318/v1/traces; no tracing if empty."
    )

    def __init__(self, **values: Any) -> None:
        """Read the environment, overridden by `values`. Raise SettingsError for an invalid value."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            faults = [
                f"{PREFIX}{'.'.join(map(str, each['loc'])).upper()}: {each['msg']}, found {str(each['input'])[:80]!r}"
                for each in error.errors()
            ]
            raise SettingsError("; ".join(faults)) from error

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_address(cls, port: Any) -> Any:
        return cls.model_fields["port"].default if SERVICE_ADDRESS.fullmatch(str(port)) else port

    @field_validator("trusted_proxies")
    @classmethod
    def _require_networks(cls, proxies: str) -> str:
        for proxy in _split(proxies):
            ipaddress.ip_network(proxy)
        return proxies

    @field_validator("default_models")
    @classmethod
    def _require_pairs(cls, pairs: str) -> str:
        families = [_pair(pair)[0] for pair in _split(pairs)]
        if len(set(families)) < len(families):
            raise ValueError("expected one model a family, found several")
        return pairs

    @field_validator("cors_origins")
    @classmethod
    def _require_origins(cls, origins: str) -> str:
        for origin in _split(origins):
            found = urlsplit(origin)
            if origin != "*" and f"{found.scheme}://{found.netloc}" != origin:
                raise ValueError(f"expected origins like https://example.org, found {origin!r}")
        return origins

    @model_validator(mode="after")
    def _require_shared_rates(self) -> Self:
        if self.workers > 1 and self.rate_limit and self.rate_storage.startswith("memory"):
            raise SettingsError(
                f"{PREFIX}RATE_STORAGE: expected redis://host:6379 for rates with {PREFIX}WORKERS={self.workers}, "
                f"found {self.rate_storage!r}, which each worker counts separately"
            )
        return self

    @property
    def models_by_family(self) -> dict[str, str]:
        """The models of requests that name none."""
        return dict(_pair(pair) for pair in _split(self.default_models))

    @property
    def origins(self) -> list[str]:
        """The allowed CORS origins."""
        return _split(self.cors_origins)

    @property
    def proxies(self) -> list[str]:
        """The addresses and networks of trusted proxies."""
        return _split(self.trusted_proxies)

    @property
    def is_local(self) -> bool:
        """True if the server listens on a loopback address or a Unix socket only."""
        if self.unix_socket:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """The URL of the service; its Unix socket as unix:path."""
        if self.unix_socket:
            return f"unix:{self.unix_socket}"
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def _pair(text: str) -> tuple[str, str]:
    family, _, model = (part.strip() for part in text.partition("="))
    if not family or not model:
        raise ValueError(f"expected pairs like language_model=ptb, found {text!r}")
    return family, model


def _split(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning about each variable with the prefix that is no setting, and one about those of Kubernetes."""
    known = [PREFIX + field.upper() for field in Settings.model_fields]
    warnings, services = [], []
    for name in sorted(environment):
        upper = name.upper()
        if SERVICE_VARIABLE.fullmatch(upper) and (upper not in known or SERVICE_ADDRESS.fullmatch(environment[name])):
            services.append(name)
        elif upper.startswith(PREFIX) and upper not in known:
            (closest,) = difflib.get_close_matches(upper, known, n=1, cutoff=0.0)
            warnings.append(f"{name}: no such setting, ignored; the closest is {closest}")
    if services:
        warnings.append(f"{', '.join(services)}: ignored, set by Kubernetes for a Service")
    return warnings
