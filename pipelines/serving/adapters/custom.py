"""A robot of one's own, from a YAML file: which dimension each number of a command is, scaled and bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.serving.adapters.base import Adapter, Units, Values, changed, number


@dataclass(frozen=True, kw_only=True)
class Output:
    """command = dimension * scale + offset, within [low, high]."""

    dimension: str
    name: str = ""
    """By default the dimension's."""
    unit: str = ""
    """By default the dimension's."""
    scale: float = 1.0
    offset: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale != 0 and math.isfinite(self.offset) and self.low < self.high):
            raise ValueError(
                f"output {self.dimension}: scale {self.scale} must not be 0, and low {self.low} below high {self.high}"
            )


@dataclass(frozen=True, kw_only=True)
class Custom(Adapter):
    """Numbers in the order of `outputs`."""

    outputs: tuple[Output, ...]

    def __post_init__(self) -> None:
        named = [output.name or output.dimension for output in self.outputs]
        if not named or len(set(named)) < len(named):
            raise ValueError(f"outputs must be one or more, each with its own name, got {', '.join(named) or 'none'}")

    def missing(self, known: Sequence[str]) -> list[str]:
        return [output.dimension for output in self.outputs if output.dimension not in known]

    def names(self, known: Sequence[str]) -> Sequence[str]:
        return [output.name or output.dimension for output in self.outputs]

    def unit_of(self, name: str, units: Units) -> str:
        (output,) = [output for output in self.outputs if name == (output.name or output.dimension)]
        return output.unit or units[output.dimension]

    def command(self, values: Values, units: Units) -> np.ndarray:
        raw = [number(values, output.dimension) * output.scale + output.offset for output in self.outputs]
        low, high = [output.low for output in self.outputs], [output.high for output in self.outputs]
        return np.clip(np.array(raw), low, high).astype(np.float32)

    def clipped(self, values: Values, units: Units) -> list[str]:
        unlimited = replace(self, outputs=tuple(replace(each, low=-math.inf, high=math.inf) for each in self.outputs))
        return changed(self.names(()), self.command(values, units), unlimited.command(values, units))

    def values(self, command: np.ndarray, units: Units) -> dict[str, float]:
        pairs = zip(self.outputs, command, strict=True)
        return {output.dimension: (float(value) - output.offset) / output.scale for output, value in pairs}
