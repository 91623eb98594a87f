"""The models that workers share, and those that one serves."""

import shutil
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from app.runtime.metrics import Metrics
from app.runtime.registry import Registry
from app.runtime.worker import Shelf

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(two_versions: Path, tmp_path: Path) -> Path:
    """`tiny`, which can be served, and `bad`, which can't."""
    store = Path(shutil.copytree(two_versions, tmp_path / "store"))
    shutil.copytree(store / "tiny", store / "bad")  # its bundles say that they are of `tiny`
    return store


@pytest.mark.parametrize("share", [True, False])
async def test_a_worker_started_later_forgets_a_rejected_model_that_was_deleted(store: Path, *, share: bool) -> None:
    metrics = Metrics(CollectorRegistry())
    registry = Registry(store, threads=1, queue_size=8, batch_size=4, cache_bytes=1 << 20, metrics=metrics)
    shelf = Shelf(registry, share=share)
    assert registry.rejected.keys() == ({"bad"} if share else set())
    shutil.rmtree(store / "bad")
    served = shelf.serve({"tiny": "1"})
    assert (served.serving("tiny"), served.rejected) == ("1", {})
    await served.close()
