"""A cache with a budget in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any


class Lru:
    """A thread-safe cache that forgets the least recently used entries beyond a number of bytes, but never the last."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity, self.held_bytes = capacity_bytes, 0
        self._entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        """The value, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Any, value: Any, num_bytes: int) -> None:
        """Keep `value`, unless the key is kept already."""
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = (value, num_bytes)
            self.held_bytes += num_bytes
            while self.held_bytes > self._capacity and len(self._entries) > 1:
                self.held_bytes -= self._entries.popitem(last=False)[1][1]
