"""Memory that this process frees and needs again at once, in a conversion as in a server.

Left alone, glibc gives blocks of the size of a frame or an episode back to the system when they are freed, and the
system clears the pages of the next ones: in a conversion two page faults a step, where frames are not read through.
"""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_KEPT_BYTES = 128 << 20
_LARGEST_BLOCK = 32 << 20  # the most that glibc takes


@cache
def keep_freed_memory(*, most_arenas: int | None = None) -> None:
    """Let this process keep what it has freed, up to 128 MiB in each of malloc's arenas, from now on to its end; under
    another C library nothing changes.

    most_arenas: threads share so many. By default glibc gives them up to eight for each core, each of which keeps what
    its largest message needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    if most_arenas is not None:
        mallopt(_ARENA_MAX, most_arenas)
