"""Ray Serve, tuned as documented: batching, throughput mode, enough ongoing requests.

python -m tests.bench.serving.peers.rays PORT
"""

import signal
import sys
import tempfile
import threading
from typing import Any, get_args

import ray
from ray import serve

from tests.bench.serving.peers.engines import BATCH, WAIT_S, WORKERS, opened
from tests.bench.serving.peers.routes import Kind, application


async def ask(kind: Kind, payload: Any) -> dict[str, Any]:
    """Answer one payload with the models of this process."""
    models: Any = serve.get_replica_context().servable_object
    found: dict[str, Any] = await models.asks[kind](payload)
    return found


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
@serve.ingress(application(ask))
class Models:
    """All models and the HTTP routes."""

    def __init__(self) -> None:
        self.asks = {kind: _batched(kind) for kind in get_args(Kind)}


def _batched(kind: Kind) -> Any:
    answers = opened(kind)

    @serve.batch(max_batch_size=BATCH[kind], batch_wait_timeout_s=WAIT_S)  # type: ignore[untyped-decorator]
    async def batched(payloads: list[Any]) -> list[dict[str, Any]]:
        return answers(payloads)

    return batched


def main() -> None:
    """Serve until SIGTERM."""
    stopped = threading.Event()
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=True)
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # replaces Ray's handler, which aborts
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        serve.run(
            Models.bind(),  # type: ignore[attr-defined]
            name="bench",
            route_prefix="/",
        )
        stopped.wait()
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
