"""Every dimension of the policy, physical, in the contract's order: for software written for this project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.serving.adapters.base import Adapter, Units, Values, number


@dataclass(frozen=True, kw_only=True)
class Own(Adapter):
    """Physical values under their own names; a class is its number."""

    def missing(self, known: Sequence[str]) -> list[str]:
        return []

    def names(self, known: Sequence[str]) -> Sequence[str]:
        return known

    def unit_of(self, name: str, units: Units) -> str:
        return units[name]

    def command(self, values: Values, units: Units) -> np.ndarray:
        return np.array([number(values, name) for name in units], np.float32)

    def values(self, command: np.ndarray, units: Units) -> dict[str, float]:
        return {name: float(value) for name, value in zip(units, command, strict=True)}
