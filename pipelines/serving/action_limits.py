"""Limits on actions in physical units: what a server never lets a robot be told, whatever the model says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipelines.config.serialization import did_you_mean, read_yaml
from pipelines.publishing.inference import NamedAction


@dataclass(frozen=True, kw_only=True)
class ActionLimits:
    """Lowest and highest physical value by dimension."""

    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @staticmethod
    def read(path: str) -> ActionLimits:
        """From YAML such as `world_vector_x: [-0.05, 0.05]`. Raises ValueError for anything else."""
        table = read_yaml(path)
        if not isinstance(table, Mapping):
            raise ValueError(f"{path}: expected a line such as world_vector_x: [-0.05, 0.05] for each dimension")
        return ActionLimits(bounds={str(name): _bounds(path, str(name), pair) for name, pair in table.items()})

    def require_known(self, names: Sequence[str], classes: Sequence[str]) -> None:
        """Raise ValueError for a limit of a dimension that the policy lacks, or whose values are class numbers."""
        for name in self.bounds:
            if name not in names:
                raise ValueError(f"--action-limits: the policy has no dimension {name!r}{did_you_mean(name, [*names])}")
            if name in classes:
                raise ValueError(f"--action-limits: {name} holds the number of a class and cannot be limited")

    def applied(self, action: NamedAction) -> tuple[NamedAction, tuple[str, ...]]:
        """The action within the limits, and the dimensions that were not."""
        values = dict(action.values)
        clipped: list[str] = []
        for name, (low, high) in self.bounds.items():
            value = values[name]
            if value is not None and not low <= value <= high:
                values[name] = min(max(value, low), high)
                clipped.append(name)
        return (replace(action, values=values), tuple(clipped)) if clipped else (action, ())


def _bounds(path: str, name: str, pair: object) -> tuple[float, float]:
    if isinstance(pair, list) and len(pair) == 2 and all(type(side) in (int, float) for side in pair):
        low, high = map(float, pair)
        if math.isfinite(low) and math.isfinite(high) and low <= high:
            return low, high
    raise ValueError(f"{path}: {name} must be [LOWEST, HIGHEST] in the dimension's unit, got {pair!r:.60}")
