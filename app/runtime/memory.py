"""Memory of the server's processes: what the garbage collector and the C library's allocator keep of it."""

import ctypes
import gc
import platform
from typing import Final

LARGE: Final = 2**20  # bytes; a larger block is mapped by itself, so that it returns to the system when it is freed
KEPT: Final = 16 * LARGE  # freed bytes at the top of the heap that are kept
ARENAS: Final = 2

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc

_LIBC: Final = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None  # others have no such limits


def limit_heap() -> None:
    """Make glibc return what images and documents took; call it before the first thread starts.

    By default it raises the size of a large block with each that is freed, up to 32 MiB, and has eight arenas a core:
    after images of all kinds a server would keep 540 MB instead of 280.
    """
    if _LIBC:
        for limit, value in ((M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, KEPT), (M_ARENA_MAX, ARENAS)):
            _LIBC.mallopt(limit, value)


def freeze_heap() -> None:
    """Collect garbage, then exempt the rest from collection: the loaded models take 30 ms to traverse."""
    gc.collect()
    gc.freeze()


def release_memory() -> None:
    """Return freed memory to the system: after a few exchanges glibc would keep as much as another version takes."""
    gc.unfreeze()
    freeze_heap()  # a vocabulary is in a reference cycle
    if _LIBC:
        _LIBC.malloc_trim(0)
