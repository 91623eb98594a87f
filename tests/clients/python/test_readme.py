"""The examples of the client's README, run against a server of the shipped models."""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
import seqserve

from app.api.http.keys import create
from tests.e2e.conftest import serving

ROOT = Path(__file__).parents[3]
README = (ROOT / "clients" / "python" / "README.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"
EXAMPLES: Final[list[str]] = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.URL]:
    with serving(ROOT / "models_store") as (client, _):
        yield client.base_url


def test_the_examples_print_what_the_readme_says(server: httpx.URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the images are named from here
    assert len(EXAMPLES) == 5
    assert README.count(URL) == 2
    text = "\n".join(EXAMPLES).replace(URL, str(server))
    names: dict[str, object] = {}
    examples = doctest.DocTestParser().get_doctest(text, names, "README.md", None, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(examples, out=report.append, clear_globs=False).failed == 0, "".join(report)
    client = examples.globs["client"]
    assert isinstance(client, seqserve.Client)
    client.close()


def test_a_key_is_accepted_and_its_absence_reported(tmp_path: Path, tiny_store: Path) -> None:
    key = create(tmp_path / "keys", "writer", "predict", None)
    with serving(tiny_store, SEQSERVE_API_KEYS_FILE=str(tmp_path / "keys")) as (http, _):
        with seqserve.Client(str(http.base_url), api_key=key) as client:
            assert [model.name for model in client.models()] == ["tiny"]
        with seqserve.Client(str(http.base_url)) as client, pytest.raises(seqserve.Unauthenticated):
            client.models()
