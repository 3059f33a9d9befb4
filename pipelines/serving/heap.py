"""Memory that a server frees is kept for the next frames, and threads share it.

Left alone, glibc gives every block of a frame's size back to the system and asks for it anew, and clearing pages costs
more than what is computed in them. And it gives each thread a heap of its own, up to eight for each core, each of which
keeps what its largest messages needed.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's malloc.h
_LARGEST_BLOCK = 2**25  # bytes; glibc takes no more
_KEPT_FREE = 2**27  # bytes at a heap's end


def keep_freed_memory() -> bool:
    """Set the allocator of this process; False where it is not glibc's, which is then left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_BLOCK), (_TRIM_THRESHOLD, _KEPT_FREE), (_ARENA_MAX, 2))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
