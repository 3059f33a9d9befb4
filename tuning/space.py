"""What a sweep varies: typed ranges and choices over dotted paths of an experiment. Pure; Optuna only names them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Value = Any  # what a setting may hold in a YAML file: a number, text, a list, or a mapping for a config class
Parameters = Mapping[str, Value]  # dotted path -> value


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """A real number."""

    low: float
    """Lowest value."""
    high: float
    """Highest value, included."""
    log: bool = False
    """Draw uniformly in the logarithm."""

    def __post_init__(self) -> None:
        _require_range(self.low, self.high, self.log)

    def distribution(self) -> BaseDistribution:
        return FloatDistribution(float(self.low), float(self.high), log=self.log)

    def words(self) -> str:
        return f"between {self.low:g} and {self.high:g}{', on a log scale' if self.log else ''}"

    def coordinate(self, value: Value) -> float:
        """The place of `value` on an axis: its logarithm with `log`."""
        return math.log(value) if self.log else float(value)

    def extremes(self) -> tuple[Value, ...]:
        """Values that a setting must accept for every value in between to be accepted."""
        return (float(self.low), float(self.high))

    def grid(self) -> tuple[Value, ...]:
        raise ValueError("a grid needs Choice for every setting, and this one is a range of real numbers")

    def draw(self, random: np.random.Generator) -> Value:
        if self.log:
            return float(
                np.clip(math.exp(random.uniform(math.log(self.low), math.log(self.high))), self.low, self.high)
            )
        return float(random.uniform(self.low, self.high))

    def perturb(self, value: Value, factor: float, random: np.random.Generator) -> Value:
        """`value` times or divided by `factor`, within the range."""
        up = random.choice((-1, 1)) > 0
        return float(np.clip(value * factor if up else value / factor, self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class Integer:
    """A whole number."""

    low: int
    """Lowest value."""
    high: int
    """Highest value, included."""
    log: bool = False
    """Draw uniformly in the logarithm."""

    def __post_init__(self) -> None:
        _require_range(self.low, self.high, self.log)

    def distribution(self) -> BaseDistribution:
        return IntDistribution(self.low, self.high, log=self.log)

    def words(self) -> str:
        return f"a whole number from {self.low} to {self.high}{', on a log scale' if self.log else ''}"

    def coordinate(self, value: Value) -> float:
        return math.log(value) if self.log else float(value)

    def extremes(self) -> tuple[Value, ...]:
        return (self.low, self.high)

    def grid(self) -> tuple[Value, ...]:
        return tuple(range(self.low, self.high + 1))

    def draw(self, random: np.random.Generator) -> Value:
        if self.log:
            return min(self.high, int(math.exp(random.uniform(math.log(self.low), math.log(self.high + 1)))))
        return int(random.integers(self.low, self.high, endpoint=True))

    def perturb(self, value: Value, factor: float, random: np.random.Generator) -> Value:
        """`value` times or divided by `factor`, rounded away from it so that it changes, within the range."""
        up = random.choice((-1, 1)) > 0
        moved = math.ceil(value * factor) if up else math.floor(value / factor)
        return min(max(moved, self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]
    """At least two; their order matters to a perturbation, which moves to a neighbour."""

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"Choice needs at least 2 values, got {len(self.values)}")
        object.__setattr__(self, "values", tuple(map(_as_recorded, self.values)))

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(range(len(self.values)))  # by place: a value may be a whole config class

    def words(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"

    def coordinate(self, value: Value) -> float:
        """The place of `value` among the choices."""
        return float(self.values.index(value))

    def extremes(self) -> tuple[Value, ...]:
        return self.values

    def grid(self) -> tuple[Value, ...]:
        return self.values

    def draw(self, random: np.random.Generator) -> Value:
        return self.values[int(random.integers(len(self.values)))]

    def perturb(self, value: Value, factor: float, random: np.random.Generator) -> Value:
        """A neighbour of `value`; `factor` has no meaning here."""
        place = self.values.index(value) + int(random.choice((-1, 1)))
        return self.values[min(max(place, 0), len(self.values) - 1)]


Dimension = Uniform | Integer | Choice
Space = Mapping[str, Dimension]


def parameters_text(parameters: Parameters) -> str:
    """ "optimizer.lr 0.0021, engine TorchEngineConfig" """
    return ", ".join(f"{path} {value_text(value)}" for path, value in parameters.items())


def value_text(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value.get("type", value)) if isinstance(value, dict) else str(value)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    return {path: dimension.distribution() for path, dimension in space.items()}


def to_optuna(space: Space, parameters: Parameters) -> dict[str, Value]:
    """Values as Optuna's distributions hold them: a choice by its place."""
    suggested = {}
    for path, dimension in space.items():
        value = parameters[path]
        suggested[path] = dimension.values.index(value) if isinstance(dimension, Choice) else value
    return suggested


def from_optuna(space: Space, suggested: Parameters) -> dict[str, Value]:
    """The inverse of `to_optuna`."""
    parameters = {}
    for path, dimension in space.items():
        parameters[path] = dimension.values[suggested[path]] if isinstance(dimension, Choice) else suggested[path]
    return parameters


def grid(space: Space) -> Iterator[dict[str, Value]]:
    """Every combination, the last setting varying fastest. Raises ValueError for a range of real numbers."""
    for values in product(*_axes(space)):
        yield dict(zip(space, values, strict=True))


def grid_size(space: Space) -> int:
    """How many combinations there are. Raises ValueError for a range of real numbers."""
    return math.prod(map(len, _axes(space)))


def _axes(space: Space) -> list[tuple[Value, ...]]:
    axes = []
    for path, dimension in space.items():
        try:
            axes.append(dimension.grid())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return axes


def _as_recorded(value: Value) -> Value:
    """A value as the ledger's JSON gives it back, so that it is found again: tuples become lists."""
    return [_as_recorded(item) for item in value] if isinstance(value, list | tuple) else value


def _require_range(low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a range needs finite low < high, got {low} and {high}")
    if log and low <= 0:
        raise ValueError(f"a range in logarithms needs low > 0, got {low}")
