"""All checks of schemathesis: the OpenAPI document against a real server.

FUZZ_EXAMPLES sets the number of generated examples per operation; `make fuzz` sets many.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import seqserve, serving

HERE = Path(__file__).parent
STORE = HERE.parents[1] / "models_store"
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "2")


def test_the_service_conforms_to_its_openapi_document(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    secret = seqserve("keys", "new", "fuzz", "--scope", "admin", "--file", keys).stdout.strip()
    with serving(STORE, SEQSERVE_API_KEYS_FILE=str(keys)) as (client, _):
        command: list[str | Path] = [Path(sys.executable).with_name("st"), "--config-file", HERE / "fuzz.toml", "run"]
        command += [f"{client.base_url}/openapi.json", "--header", f"Authorization: Bearer {secret}"]
        command += ["--checks", "all", "--phases", "examples,coverage,fuzzing", "--warnings", "off"]
        command += ["--max-examples", EXAMPLES, "--seed", "1", "--continue-on-failure", "--request-timeout", "60"]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path, check=False)
    print(re.findall(r"\d+ generated.*", result.stdout))
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr
