"""The same server as replicas of Ray Serve, on as many logical processors as replicas.

python -m tests.bench.scale.on_ray PORT REPLICAS, with the environment of `simulated`
"""

import signal
import sys
import tempfile
import threading
from typing import cast

import ray
from ray import serve

from app.runtime import families
from app.server.ray import Scale, application
from tests.bench.scale.simulated import simulated


def install() -> None:
    """Replace the families of this worker process."""
    cast(dict[str, families.Family], families.FAMILIES).update(simulated())


def main(port: int, replicas: int) -> None:
    """Serve until SIGTERM."""
    stopped = threading.Event()
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            address="local",
            num_cpus=replicas,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            runtime_env={"worker_process_setup_hook": install},
            _temp_dir=folder,
        )
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # replaces Ray's handler, which aborts
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        serve.run(application(Scale(min_replicas=replicas, max_replicas=replicas)), name="seqserve")
        stopped.wait()
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
