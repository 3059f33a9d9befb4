"""Population-based training (Jaderberg et al., 2017, arXiv 1711.09846), as a pure step between generations.

All members train `interval_steps`; then each of the worst takes over weights and parameters of one of the best and
perturbs the parameters. The generations are synchronous: a step is a function of the members' scores and the seed, so
that a sweep killed at any moment comes to the same population.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tuning.space import Parameters, Space, Value


@dataclass(frozen=True, kw_only=True)
class Population:
    """Population-based training: every generation the worst members take over the best."""

    interval_steps: int = 50
    """Optimizer steps of a generation."""
    quantile: float = 0.25
    """Share of the members that is replaced, by an equal share of the best."""
    factor: float = 1.25
    """A number is multiplied or divided by this."""
    resample: float = 0.25
    """Probability that a setting is drawn anew instead."""

    def __post_init__(self) -> None:
        if self.interval_steps < 1 or not 0 < self.quantile <= 0.5 or self.factor <= 1 or not 0 <= self.resample <= 1:
            raise ValueError(
                f"Population needs interval_steps >= 1, 0 < quantile <= 0.5, factor > 1 and 0 <= resample <= 1, "
                f"got {self.interval_steps}, {self.quantile}, {self.factor} and {self.resample}"
            )

    def pause(self, step: int, num_steps: int) -> int:
        """Where the generation that begins at `step` ends."""
        return min(num_steps, (step // self.interval_steps + 1) * self.interval_steps)


@dataclass(frozen=True, kw_only=True)
class Takeover:
    """`parameters` is what the member goes on with, on the weights of `parent`."""

    parent: int
    parameters: Parameters


def takeovers(
    config: Population, space: Space, members: Mapping[int, tuple[float, Parameters]], *, direction: str, seed: int
) -> dict[int, Takeover]:
    """Who takes over whom. members: number -> (score, parameters); `seed` differs between generations."""
    sign = 1 if direction == "min" else -1
    # A member without a score (not a number) is the worst; equals stand in the order of their numbers.
    ranked = sorted(members, key=lambda n: (math.isnan(members[n][0]), sign * members[n][0], n))
    count = min(math.ceil(len(ranked) * config.quantile), len(ranked) // 2)
    best, worst = ranked[:count], ranked[len(ranked) - count :]
    chosen = {}
    for number in sorted(worst):
        random = np.random.default_rng((seed, number))
        parent = best[int(random.integers(len(best)))]
        chosen[number] = Takeover(parent=parent, parameters=explored(config, space, members[parent][1], random))
    return chosen


def explored(config: Population, space: Space, parameters: Parameters, random: np.random.Generator) -> dict[str, Value]:
    """`parameters` perturbed, every setting for itself."""
    return {
        path: dimension.draw(random)
        if random.random() < config.resample
        else dimension.perturb(parameters[path], config.factor, random)
        for path, dimension in space.items()
    }
