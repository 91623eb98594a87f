"""Load from wrk (https://github.com/wg/wrk): connections that each ask again as soon as they have their answer."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.serving.workloads import Workload

TIMEOUT_S: Final = 60
SCRIPT: Final = """
local folder, kind = os.getenv("BENCH_BODIES"), os.getenv("BENCH_CONTENT_TYPE")
local start = tonumber(os.getenv("BENCH_START"))
local bodies, file = {}, io.open(folder .. "/bodies", "rb")
for length in io.lines(folder .. "/lengths") do bodies[#bodies + 1] = file:read(tonumber(length)) end
wrk.method = "POST"
wrk.headers["Content-Type"] = kind
local place = start - 1  -- the first call makes a request that is looked at, not sent
function request()
  place = place + 1
  return wrk.format(nil, nil, nil, bodies[(place - 1) % #bodies + 1])
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50_us": %f, "p99_us": %f}\\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """What came of some seconds of requests."""

    answered: int  # with a status below 400
    failed: int  # with another, or with none
    seconds: float
    p50_ms: float
    p99_ms: float


def write(workload: Workload, folder: Path) -> None:
    """What `run` reads: the bodies, one after the other, their lengths, and the script."""
    folder.mkdir()
    (folder / "bodies").write_bytes(b"".join(workload.bodies))
    (folder / "lengths").write_text("".join(f"{len(body)}\n" for body in workload.bodies))
    (folder / "script.lua").write_text(SCRIPT)


def run(url: str, workload: Workload, folder: Path, *, connections: int, seconds: float, start: int) -> Load:
    """Ask `url` for `seconds` over so many connections, from the request number `start` on.

    Raise RuntimeError if wrk can't be run or says nothing that can be read.
    """
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(round(seconds), 1)}s"]
    command += ["--timeout", f"{TIMEOUT_S}s", "--script", str(folder / "script.lua"), f"{url}/{workload.kind}"]
    environment = {
        "BENCH_BODIES": str(folder),
        "BENCH_CONTENT_TYPE": workload.content_type,
        "BENCH_START": str(start),
    }
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    except OSError as error:
        raise RuntimeError(f"wrk: can't be run ({error.strerror}); Debian has it as the package wrk") from error
    if ended.returncode:
        raise RuntimeError(f"wrk: status {ended.returncode}: {ended.stdout}{ended.stderr}")
    return read(ended.stdout)


def read(told: str) -> Load:
    """What wrk wrote, whose last line is the script's."""
    lines = told.strip().splitlines()
    try:
        figures = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        raise RuntimeError(f"wrk: expected a last line of JSON, found {told!r}") from error
    return Load(
        answered=figures["requests"] - figures["refused"],
        failed=figures["refused"] + figures["broken"],
        seconds=figures["microseconds"] / 1e6,
        p50_ms=figures["p50_us"] / 1000,
        p99_ms=figures["p99_us"] / 1000,
    )
