"""What a server takes at most, from one robot and from all: sizes, rates, places and times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Whatever is beyond these is refused in one sentence; nothing is taken on that cannot be answered in time."""

    max_message_mib: int = 16
    """Size of a message or request body in MiB; a larger one is not read to its end."""
    max_robots: int = 128
    """Robots whose frames are remembered at once; one more is refused until another has gone or was idle."""
    max_rate_hz: float = 100.0
    """Actions per second for one robot, averaged over a second."""
    max_waiting: int = 128
    """Requests that may wait for the model; one more is refused at once."""
    late_ms: float = 1000.0
    """Age at which a request that still waits is refused: an action for an old frame is worse than none."""
    idle_s: float = 600.0
    """Seconds without a request after which an HTTP robot's frames are forgotten."""
    max_instruction_chars: int = 1000
    """Letters of an instruction."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give a number above 0")

    @property
    def message_bytes(self) -> int:
        return self.max_message_mib * 2**20
