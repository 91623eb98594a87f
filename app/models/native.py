"""The C++ kernels beside this module, compiled once and cached in torch's folder of extensions."""

import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from torch.utils._filelock import FileLock

SOURCE = Path(__file__).with_name("memory_cells.cpp")
TORCH = Path(torch.__file__).parent
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp")
VECTORS: dict[str, tuple[str, ...]] = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "DEFAULT": (),
}
"""Compiler flags by the vector instructions that torch found on this machine."""

log = logging.getLogger(__name__)


@functools.cache
def loaded() -> bool:
    """Load the operators of `SOURCE` into torch.ops.seqserve, compiling them at first (about ten seconds).

    Return False without a compiler or when compilation fails; both are logged.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in VECTORS:
        return False
    try:
        builds = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
        content = "\n".join([SOURCE.read_text(), torch.__version__, *_flags(capability)])
        library = Path(builds) / "seqserve" / f"memory_cells_{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"
        if not library.exists() and not _built(capability, library):
            return False
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: there is no home
        output = error.stderr.splitlines() if isinstance(error, subprocess.CalledProcessError) else []
        reason = next((line for line in output if "error" in line), error)
        log.warning("%s: not compiled; falling back to slower torch operations: %s", SOURCE.name, reason)
        return False
    return True


def _built(capability: str, library: Path) -> bool:
    """Compile `library` unless it exists, once among concurrent processes; return False without a compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        log.info("%s: no c++ compiler found; falling back to slower torch operations", SOURCE.name)
        return False
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(library.with_suffix(".lock")):  # an OS lock, released when its holder dies
        if not library.exists():
            build(compiler, capability, library)
    return True


def build(compiler: str, capability: str, library: Path) -> None:
    """Compile `SOURCE` into `library`; the file appears atomically, also with concurrent builds.

    Raise subprocess.CalledProcessError, with the compiler's output as `stderr`, or OSError.
    """
    started = time.monotonic()
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *_flags(capability), f"-isystem{TORCH / 'include'}", str(SOURCE), "-o", str(made)]
        command += [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(library)
    log.info("%s: compiled in %.0f s into %s", SOURCE.name, time.monotonic() - started, library)


def _flags(capability: str) -> list[str]:
    macros = (f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}")
    return [*FLAGS, *VECTORS[capability], *macros]
