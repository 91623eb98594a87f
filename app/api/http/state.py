"""Lifespan state shared by the endpoints: the registry of models, the metrics and the processes for large inputs."""

from typing import Annotated

from fastapi import Depends, Request
from typing_extensions import TypedDict

from app.runtime.metrics import Metrics
from app.runtime.processes import Processes
from app.runtime.registry import Registry


class State(TypedDict):
    """The lifespan's state, part of every request's `scope['state']`."""

    registry: Registry
    metrics: Metrics
    processes: Processes
    request_timeout_s: float


async def _registry(request: Request) -> Registry:
    registry: Registry = request.scope["state"]["registry"]
    return registry


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.scope["state"]["metrics"]
    return metrics


RegistryOf = Annotated[Registry, Depends(_registry)]
MetricsOf = Annotated[Metrics, Depends(_metrics)]
