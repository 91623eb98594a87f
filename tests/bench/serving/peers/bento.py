"""BentoML, tuned as documented: adaptive batching in a separate service behind the HTTP service.

bentoml serve tests.bench.serving.peers.bento:Front
"""

from typing import Any

import bentoml  # type: ignore[import-not-found]

from tests.bench.serving.peers.engines import BATCH, WORKERS, opened
from tests.bench.serving.peers.routes import Kind, application

LATENCY_MS = 10_000  # longer waits are rejected
OPTIONS: dict[str, Any] = {
    "logging": {"access": {"enabled": False}},
    "runner_connection": {"max_requests": 10**9},  # else requests in flight fail after every hundredth
}


async def ask(kind: Kind, payload: Any) -> dict[str, Any]:
    """Send a batch of one, which the model service merges into larger batches."""
    found: dict[str, Any] = await bentoml.get_current_service().ask(kind, payload)
    return found


@bentoml.service(workers=WORKERS, **OPTIONS)
class Models:
    """The service of all models, in one process."""

    def __init__(self) -> None:
        self._answers = {kind: opened(kind) for kind in BATCH}

    @bentoml.api(batchable=True, max_batch_size=BATCH["next-word"], max_latency_ms=LATENCY_MS)  # type: ignore[untyped-decorator]
    def next_word(self, payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._answers["next-word"](payloads)

    @bentoml.api(batchable=True, max_batch_size=BATCH["perplexity"], max_latency_ms=LATENCY_MS)  # type: ignore[untyped-decorator]
    def perplexity(self, payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._answers["perplexity"](payloads)

    @bentoml.api(batchable=True, max_batch_size=BATCH["digits"], max_latency_ms=LATENCY_MS)  # type: ignore[untyped-decorator]
    def digits(self, payloads: list[bytes]) -> list[dict[str, Any]]:
        return self._answers["digits"](payloads)

    @bentoml.api(batchable=True, max_batch_size=BATCH["captions"], max_latency_ms=LATENCY_MS)  # type: ignore[untyped-decorator]
    def captions(self, payloads: list[bytes]) -> list[dict[str, Any]]:
        return self._answers["captions"](payloads)


@bentoml.service(workers=1, **OPTIONS)
@bentoml.asgi_app(application(ask))
class Front:
    """The HTTP service."""

    models = bentoml.depends(Models)

    async def ask(self, kind: Kind, payload: Any) -> dict[str, Any]:
        """Answer one payload."""
        (answer,) = await getattr(self.models.to_async, kind.replace("-", "_"))([payload])
        return dict(answer)
