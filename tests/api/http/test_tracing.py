"""Traces, if the extra is installed."""

import subprocess
import sys
from typing import Any

import pytest
from starlette.middleware import Middleware

from app.api.http.tracing import Traced
from app.runtime.metrics import REQUEST_USAGE
from tests.api.conftest import FakeServed, connect, plausible, service

trace_export = pytest.importorskip("opentelemetry.sdk.trace.export", reason="the extra `traces` is not installed")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
sdk = pytest.importorskip("opentelemetry.sdk.trace")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("sent", [{"traceparent": PARENT}, {"traceparent": "nonsense"}, {}])
@pytest.mark.anyio
async def test_a_request_is_a_span_with_its_queue_and_engine_in_it(served: FakeServed, sent: dict[str, str]) -> None:
    async def answering(payload: Any, deadline: float | None) -> Any:
        usage = REQUEST_USAGE.get()
        assert usage
        usage.model = "ptb"
        usage.accept(1.0)
        usage.record_step(3.0, 7.0)
        usage.add(tokens=5, cached=4)
        return await plausible(payload, deadline)

    served.answering = answering
    exporter = in_memory.InMemorySpanExporter()
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(trace_export.SimpleSpanProcessor(exporter))
    app = service(served)
    app.user_middleware.insert(1, Middleware(Traced, provider=provider, now=lambda: 10.0, epoch_ns=lambda: 10**18))
    async with connect(app) as client:
        response = await client.post("/next-word", json={"text": "a"}, headers=sent)
    queue, engine, whole = exporter.get_finished_spans()
    assert (queue.name, engine.name, whole.name) == ("queue", "engine", "POST /next-word")
    assert (queue.start_time, queue.end_time) == (10**18 - 9 * 10**9, 10**18 - 7 * 10**9)
    assert (engine.start_time, engine.end_time) == (10**18 - 7 * 10**9, 10**18 - 3 * 10**9)
    assert {span.parent.span_id for span in (queue, engine)} == {whole.context.span_id}
    assert whole.attributes["http.response.status_code"] == 200
    assert engine.attributes["seqserve.model"] == "ptb"
    assert engine.attributes["seqserve.tokens"] == 5
    trace = f"{whole.context.trace_id:032x}"
    assert response.headers["traceparent"].startswith(f"00-{trace}-{whole.context.span_id:016x}-0")
    assert (trace == PARENT.split("-")[1]) == (sent.get("traceparent") == PARENT)


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    program = (
        "import sys; from app.main import create_app; from app.settings import Settings; create_app(Settings());"
        "print(*(name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'limits', 'redis'))))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, encoding="utf-8")
    assert ran.stdout == "\n"
