import os
from pathlib import Path
from shutil import which

import pytest

from tests.bench.serving.soak import Options, soaked
from tests.bench.serving.workloads import workloads

DATA = Path(os.environ.get("TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))

pytestmark = [
    pytest.mark.skipif(which("wrk") is None, reason="wrk is not installed"),
    pytest.mark.skipif(
        not (DATA / "ptb").is_dir(), reason="the Penn Treebank is not here: TEST_DATA names no folder with it"
    ),
]


def test_a_short_soak_of_a_real_server_answers_everything(tmp_path: Path) -> None:
    options = Options(DATA, rounds=1, short=True)
    results = soaked([workloads(DATA)[kind]() for kind in ("typing", "scoring")], tmp_path, options)
    assert results["failed"] == 0
    assert results["requests"] > 10
    assert results["warm_mib"] > 50
