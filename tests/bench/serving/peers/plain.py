"""Plain FastAPI: unbatched requests in the thread pool, like a route without `async`.

uvicorn tests.bench.serving.peers.plain:app
"""

from typing import Any, get_args

from starlette.concurrency import run_in_threadpool

from tests.bench.serving.peers.engines import opened
from tests.bench.serving.peers.routes import Kind, application

MODELS = {kind: opened(kind) for kind in get_args(Kind)}


async def ask(kind: Kind, payload: Any) -> dict[str, Any]:
    """Answer one payload as a batch of one."""
    (answer,) = await run_in_threadpool(MODELS[kind], [payload])
    return answer


app = application(ask)
