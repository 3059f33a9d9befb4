"""What a server counts, for Prometheus (GET /metrics)."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROBOTS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one server; `sessions` and `waiting` are asked when Prometheus asks."""

    def __init__(self, *, sessions: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "rtp_requests", "Requests by protocol and HTTP-like status", ["protocol", "status"], registry=registry
        )
        self._seconds = Histogram(
            "rtp_request_seconds", "Receipt to answer", ["protocol"], buckets=_SECONDS, registry=registry
        )
        self._passes = Histogram("rtp_model_seconds", "One pass of the model", buckets=_SECONDS, registry=registry)
        self._robots = Histogram("rtp_batch_robots", "Robots in a pass", buckets=_ROBOTS, registry=registry)
        self._clipped = Counter("rtp_clipped", "Values brought within limits", ["dimension"], registry=registry)
        self._recorded = Counter("rtp_recorded_steps", "Steps handed to the recording", registry=registry)
        self._lost = Gauge("rtp_lost_steps", "Steps that the recording was too slow for", registry=registry)
        self._swaps = Counter("rtp_model_swaps", "Models that took another's place", registry=registry)
        Gauge("rtp_robots", "Robots whose frames are remembered", registry=registry).set_function(sessions)
        Gauge("rtp_waiting", "Frames that wait for the model", registry=registry).set_function(waiting)

    def answered(self, protocol: str, status: int, seconds: float) -> None:
        self._requests.labels(protocol, str(status)).inc()
        self._seconds.labels(protocol).observe(seconds)

    def passed(self, robots: int, seconds: float) -> None:
        self._robots.observe(robots)
        self._passes.observe(seconds)

    def clipped(self, dimensions: tuple[str, ...]) -> None:
        for dimension in dimensions:
            self._clipped.labels(dimension).inc()

    def recorded(self, *, lost: int) -> None:
        """One step more, and so many that were lost since the start."""
        self._recorded.inc()
        self._lost.set(lost)

    def swapped(self) -> None:
        self._swaps.inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
