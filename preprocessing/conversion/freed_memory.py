"""Memory that a conversion frees and needs again at once.

Left alone, glibc gives blocks of an episode's size back to the system when they are freed. The system clears the pages
of the next ones: two page faults a step, where frames are not read through.
"""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 128 << 20
_LARGEST_BLOCK = 32 << 20  # the most that glibc takes


@cache
def keep_freed_memory() -> None:
    """Let this process keep what it has freed, up to 128 MiB in each of malloc's arenas, from now on to its end; under
    another C library nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
