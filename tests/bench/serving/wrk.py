"""Load generation with wrk (https://github.com/wg/wrk): closed-loop connections."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.serving.workloads import Workload

TIMEOUT_S: Final = 60
DONE: Final = """
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50_us": %f, "p99_us": %f}\\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""  # prints the line that `read` reads
SCRIPT: Final = """
local folder, kind = os.getenv("BENCH_BODIES"), os.getenv("BENCH_CONTENT_TYPE")
local start = tonumber(os.getenv("BENCH_START"))
local bodies, file = {}, io.open(folder .. "/bodies", "rb")
for length in io.lines(folder .. "/lengths") do bodies[#bodies + 1] = file:read(tonumber(length)) end
wrk.method = "POST"
wrk.headers["Content-Type"] = kind
local index = start - 1  -- wrk's first call is for inspection only
function request()
  index = index + 1
  return wrk.format(nil, nil, nil, bodies[(index - 1) % #bodies + 1])
end
"""


@dataclass(frozen=True)
class Load:
    """The result of one load."""

    answered: int  # status below 400
    failed: int  # other status, or no response
    seconds: float
    p50_ms: float
    p99_ms: float


def write(workload: Workload, folder: Path) -> None:
    """Write the files for `run`: concatenated bodies, their lengths, and the script."""
    folder.mkdir()
    (folder / "bodies").write_bytes(b"".join(workload.bodies))
    (folder / "lengths").write_text("".join(f"{len(body)}\n" for body in workload.bodies))
    (folder / "script.lua").write_text(SCRIPT + DONE)


def run(url: str, workload: Workload, folder: Path, *, connections: int, seconds: float, start: int) -> Load:
    """Load `url` for `seconds` over `connections`, from request number `start` on.

    Raise RuntimeError if wrk can't be run or its output can't be parsed.
    """
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(round(seconds), 1)}s"]
    command += ["--timeout", f"{TIMEOUT_S}s", "--script", str(folder / "script.lua"), f"{url}/{workload.kind}"]
    environment = {
        "BENCH_BODIES": str(folder),
        "BENCH_CONTENT_TYPE": workload.content_type,
        "BENCH_START": str(start),
    }
    try:
        result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    except OSError as error:
        raise RuntimeError(f"wrk: can't be run ({error.strerror}); Debian has it as the package wrk") from error
    if result.returncode:
        raise RuntimeError(f"wrk: status {result.returncode}: {result.stdout}{result.stderr}")
    return read(result.stdout)


def read(output: str) -> Load:
    """Parse the output of wrk, whose last line is the script's JSON."""
    lines = output.strip().splitlines()
    try:
        results = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        raise RuntimeError(f"wrk: expected a last line of JSON, found {output!r}") from error
    return Load(
        answered=results["requests"] - results["refused"],
        failed=results["refused"] + results["broken"],
        seconds=results["microseconds"] / 1e6,
        p50_ms=results["p50_us"] / 1000,
        p99_ms=results["p99_us"] / 1000,
    )
