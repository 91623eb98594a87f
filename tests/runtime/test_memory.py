"""The C library's allocator returns the memory of large blocks."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from app.runtime import memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "limited":
    memory.limit_heap()
large = bytearray(8 * 2**20)
del large  # glibc takes blocks up to this size from the heap from now on
before = resident_mib()
blocks = [(bytearray(b"x") * (3 * 2**20), bytearray(b"x") * 2000) for _ in range(40)]
kept = [small for _, small in blocks]  # between the large ones
del blocks
print(resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_large_blocks_return_to_the_system_from_between_small_ones() -> None:
    kept = {
        limit: float(subprocess.check_output([sys.executable, "-c", PROGRAM, limit], text=True))
        for limit in ("limited", "by default")
    }
    assert kept["limited"] < 10
    assert kept["by default"] > 60
