"""What workers share of a store, and what one of them serves of it."""

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
async def test_who_starts_later_tells_no_more_of_a_refused_model_that_is_gone(store: Path, *, share: bool) -> None:
    metrics = Metrics(CollectorRegistry())
    registry = Registry(store, threads=1, queue_size=8, batch_size=4, cache_bytes=1 << 20, metrics=metrics)
    shelf = Shelf(registry, share=share)
    assert registry.refused.keys() == ({"bad"} if share else set())
    shutil.rmtree(store / "bad")
    served = shelf.serve({"tiny": "1"})
    assert (served.serving("tiny"), served.refused) == ("1", {})
    await served.close()
