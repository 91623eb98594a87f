"""lm-evaluation-harness: perplexity by token ids and by text, as /perplexity computes it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Server
from .native import perplexity

LINES = [
    "the company said it expects to report a loss for the third quarter",
    "analysts had expected the bank to raise its dividend again this year",
    "he did n't say when the board of directors will meet",
    "the dollar fell N N against the yen in late new york trading",
    "traders said the market was waiting for the government 's report",
]
evaluated: dict[str, dict[str, float]] = {}  # the metrics by token ids
LAST_WORD = """\
task: last_word
dataset_path: json
dataset_kwargs: {data_files: {test: lines.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1}
"""


def evaluate(server: Server, folder: Path, backend: str, tasks: str, **arguments: Any) -> dict[str, dict[str, float]]:
    """Return the metrics of each task; nothing is fetched from a hub."""
    shutil.copytree(ROOT / "docs" / "lm_eval", folder, dirs_exist_ok=True)
    (folder / "text.jsonl").write_text(json.dumps({"text": "".join(f"{line}\n" for line in LINES)}))
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    (folder / "last_word.yaml").write_text(LAST_WORD)
    command = [sys.executable, "-m", "lm_eval", "--model", backend, "--tasks", tasks, "--include_path", str(folder)]
    command += ["--batch_size", str(arguments.pop("batch_size", 1))]
    command += ["--output_path", "out", "--model_args", ",".join(f"{name}={each}" for name, each in arguments.items())]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    environment = os.environ | offline | {"OPENAI_API_KEY": server.key}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (folder / "out").rglob("results*.json")
    results = json.loads(found.read_text())["results"]
    return {
        task: {re.sub(",.*", "", name): value for name, value in metrics.items()} for task, metrics in results.items()
    }


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_concurrent": 2, "batch_size": 4},
        {"tokenizer_backend": "remote", "tokenized_requests": False},
    ],
)
def test_perplexity_is_that_of_the_native_route(server: Server, tmp_path: Path, more: dict[str, Any]) -> None:
    address = f"{server.url}/models/ptb/v1/completions"
    arguments = {"model": "ptb", "base_url": address, "max_length": 100_000, "auth_token": server.key, **more}
    by_text = "tokenized_requests" in more  # which this client can't do for whole documents
    tasks = "last_word" if by_text else "rolling,last_word"
    found = evaluate(server, tmp_path, "local-completions", tasks, **arguments)
    expected = perplexity(server, "".join(f"{line}\n" for line in LINES))
    if not by_text:
        assert found["rolling"]["word_perplexity"] == pytest.approx(expected["perplexity"], rel=1e-9)
    ids = evaluated.setdefault("last_word", found["last_word"])
    assert found["last_word"]["perplexity"] == pytest.approx(ids["perplexity"], rel=1e-9)
    assert found["last_word"]["acc"] == ids["acc"]


def test_gguf_sends_texts_and_finds_the_continuation_by_offsets(open_server: Server, tmp_path: Path) -> None:
    found = evaluate(open_server, tmp_path, "gguf", "last_word", base_url=f"{open_server.url}/models/ptb")
    expected = evaluated["last_word"]
    assert found["last_word"]["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-9)
    assert found["last_word"]["acc"] == expected["acc"]
