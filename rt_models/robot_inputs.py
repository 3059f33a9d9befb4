"""What a model reads of a robot beside the main camera: other cameras, and its state (proprioception).

A state is optional, because policies that see it tend to copy it; noise and dropout are settings. Each data set's
state is normalised by its own statistics, its 1 % and 99 % quantiles onto -1 and 1, and limited. The models' states are
the union of what their data sets have, by name: one name has one unit everywhere.

Axes: N steps, P values of a model's state, K columns of a store's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rt_models.action_scaling import ActionStatistics, AffineTransform
from rt_models.config_checks import require_share


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """What was done to a camera frame before the model: "none", or a resize by "pad", "squash" or "crop"."""

    camera: str
    height: int
    width: int
    resize: Literal["none", "pad", "squash", "crop"] = "none"

    def __str__(self) -> str:
        resize = "as recorded" if self.resize == "none" else f"resized by {self.resize}"
        return f"{self.height}x{self.width} of camera {self.camera}, {resize}"


STATE_LIMIT = 5.0
"""Normalised values beyond it are cut: a sensor's outlier must not drown the rest."""
_NARROW = 2.0**-8  # quantiles are known to 2^-12 of a value (preprocessing/store/statistics.py): too little for these
_NORMAL_99 = 2.3263478740408408  # standard deviations from the mean to the 99 % quantile


@dataclass(frozen=True, kw_only=True)
class StateInput:
    """That a model reads the robot's state, and how far it may lean on it."""

    names: tuple[str, ...] = ()
    """Values read, by name and in this order; none: all that the stores have. rtp train writes them here."""
    noise: float = 0.0
    """Standard deviation of what is added to each normalised value in training; between the 1 % and 99 % quantiles of
    a value lie 2."""
    dropout: float = 0.0
    """Share of training windows whose whole state is absent."""

    def __post_init__(self) -> None:
        require_share(self, "dropout", "state.")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"state.noise must be 0 or more, got {self.noise}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"state.names must differ, got {', '.join(self.names)}")


@dataclass(frozen=True, kw_only=True)
class StateSide:
    """The state that one data set has: physical values in this order, and how they are normalised."""

    names: tuple[str, ...]
    """What the model calls them."""
    units: tuple[str, ...]
    statistics: ActionStatistics
    transform: AffineTransform
    own_names: tuple[str, ...] = ()
    """What the data set calls them, where a mixture declares other names (`renamed`)."""

    @property
    def recorded_names(self) -> tuple[str, ...]:
        """What stores and robots of the data set call them."""
        return self.own_names or self.names

    def renamed(self, declared: str) -> StateSide:
        """The same under the names that "common = own; common = own", also in lines, gives; others keep theirs.

        Raises ValueError for a text that is none, a value that there is not, and a name that two values get.
        """
        pairs = [
            tuple(part.strip() for part in each.split("=")) for each in re.split("[;\n]", declared) if each.strip()
        ]
        wrong = [pair for pair in pairs if len(pair) != 2 or not all(pair)]
        if wrong or not pairs:
            raise ValueError(f'{declared!r:.80} does not read "common = own; common = own"')
        unknown = [own for _, own in pairs if own not in self.names]
        if unknown:
            raise ValueError(f"there is no {unknown[0]}: the state has {', '.join(self.names)}")
        common = {own: name for name, own in pairs}
        names = tuple(common.get(own, own) for own in self.names)
        twice = [name for name in names if names.count(name) > 1]
        if twice or len(common) < len(pairs):
            raise ValueError(f"two values cannot be {twice[0] if twice else pairs[0][0]}, or one have two names")
        return replace(self, names=names, own_names=self.names)

    @staticmethod
    def measured(names: Sequence[str], units: Sequence[str], statistics: ActionStatistics) -> StateSide:
        """Normalised by these statistics: q01 becomes -1 and q99 becomes 1; what hardly varies is only centred.

        Of a narrow range far from 0, such as ticks of an encoder, the quantiles are those of a normal distribution.
        """
        low, high = np.asarray(statistics.q01), np.asarray(statistics.q99)
        least, most = np.asarray(statistics.minimum), np.asarray(statistics.maximum)
        is_narrow = (most > least) & (most - least < _NARROW * np.maximum(np.abs(least), np.abs(most)))
        reach = _NORMAL_99 * np.asarray(statistics.std)
        low = np.where(is_narrow, np.maximum(np.asarray(statistics.mean) - reach, least), low)
        high = np.where(is_narrow, np.minimum(np.asarray(statistics.mean) + reach, most), high)
        varies = high - low > 1e-6 * np.maximum(1.0, np.abs(high))
        scale = np.where(varies, 2 / np.where(varies, high - low, 1.0), 1.0)
        transform = AffineTransform(
            name="quantiles", scale=tuple(scale.tolist()), offset=tuple((-(low + high) / 2 * scale).tolist())
        )
        return StateSide(names=tuple(names), units=tuple(units), statistics=statistics, transform=transform)

    def chosen(self, names: Sequence[str]) -> StateSide:
        """Those of `names` that the data set has, in that order."""
        places = [self.names.index(name) for name in names if name in self.names]

        def taken(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(values[place] for place in places)

        found, transform = self.statistics, self.transform
        rows = ("mean", "std", "minimum", "maximum", "q01", "q99")
        return StateSide(
            names=tuple(self.names[place] for place in places),
            own_names=tuple(self.own_names[place] for place in places) if self.own_names else (),
            units=tuple(self.units[place] for place in places),
            statistics=ActionStatistics(count=found.count, **{row: taken(getattr(found, row)) for row in rows}),
            transform=AffineTransform(
                name=transform.name, scale=taken(transform.scale), offset=taken(transform.offset)
            ),
        )

    def normalised(self, physical_NK: np.ndarray) -> np.ndarray:
        """float32 (..., K) of physical values in the order of `names`. Raises ValueError for one that is not finite."""
        if not np.isfinite(physical_NK).all():
            odd = [name for name, is_odd in zip(self.recorded_names, _odd(physical_NK), strict=True) if is_odd]
            raise ValueError(f"state {odd[0]} is not finite, and the model reads it")
        return np.clip(self.transform.apply(physical_NK), -STATE_LIMIT, STATE_LIMIT)

    def read(self, values: object) -> np.ndarray:
        """float32 (K,) normalised, from what a robot sends: numbers by name, or all in the order of `names`.

        Raises ValueError, naming the value, for one that is missing, unknown or not finite.
        """
        return self.normalised(self._physical(values))

    def physical(self, values: object) -> tuple[float, ...]:
        """The K numbers, from what `read` takes."""
        return tuple(self._physical(values).tolist())

    def _physical(self, values: object) -> np.ndarray:
        names = self.recorded_names
        if isinstance(values, Mapping):
            missing, unknown = [n for n in names if n not in values], [n for n in values if n not in names]
            if missing or unknown:
                wrong = f"lacks {missing[0]}" if missing else f"has {unknown[0]!s:.60}, which is not read"
                raise ValueError(f"state {wrong}: send {self.described()}")
            values = [values[name] for name in names]
        try:
            physical_K = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"state must be numbers: send {self.described()}") from None
        if physical_K.shape != (len(names),):
            raise ValueError(f"state has the shape {physical_K.shape}: send {self.described()}")
        return physical_K

    def described(self) -> str:
        """Names with units, in their order: "state/x [m], state/gripper [unknown]"."""
        return ", ".join(f"{name} [{unit}]" for name, unit in zip(self.recorded_names, self.units, strict=True))


def _odd(physical_NK: np.ndarray) -> np.ndarray:
    """bool (K,): columns that hold a value that is not finite."""
    return np.asarray(~np.isfinite(physical_NK.reshape(-1, physical_NK.shape[-1])).all(axis=0))


@dataclass(frozen=True, kw_only=True)
class StoreInputs:
    """What a store has of what a model reads beside the main camera: the recipes of cameras by role, and the whole
    state; None: it has none, or none is asked for."""

    cameras: tuple[ImageRecipe, ...] = ()
    state: StateSide | None = None


@dataclass(frozen=True, kw_only=True)
class StateColumns:
    """How the columns of each of several stores become a model's state. `names`: the model's P values in their order;
    `sides`: of each store those of them that it has, None where it has none."""

    names: tuple[str, ...]
    sides: tuple[StateSide | None, ...]

    def mask(self) -> np.ndarray:
        """bool (stores, P): True where a store has the value."""
        return np.array([[side is not None and name in side.names for name in self.names] for side in self.sides])

    def values(self, store: int, columns: Sequence[str], recorded_NK: np.ndarray) -> np.ndarray:
        """float32 (N, P) from `recorded_NK`, all columns of store number `store`, which are called `columns`; 0 where
        the store has no such value. Raises ValueError for a value that is read and is not finite."""
        side = self.sides[store]
        if side is None:
            return np.zeros((len(recorded_NK), len(self.names)), np.float32)
        taken = [columns.index(name) for name in side.recorded_names]
        return self.placed(side.normalised(recorded_NK[:, taken]), store)

    def placed(self, normalised_NK: np.ndarray, store: int) -> np.ndarray:
        """float32 (..., P) from the values that a store has, in its side's order; 0 where it has no such value."""
        state_NP, side = np.zeros((*normalised_NK.shape[:-1], len(self.names)), np.float32), self.sides[store]
        if side is not None:
            state_NP[..., [self.names.index(name) for name in side.names]] = normalised_NK
        return state_NP


def union_of_states(sides: Mapping[str, StateSide | None], asked: Sequence[str]) -> tuple[str, ...]:
    """The names of the state of a model trained on these data sets: `asked`, or all that they have, in the order of the
    first.

    Raises ValueError for a name that no data set has, or that has another unit in another one, and where nothing is
    asked for and the data sets that have a state have different ones.
    """
    unit_of: dict[str, tuple[str, str]] = {}
    for dataset, side in sides.items():
        for name, unit in [] if side is None else zip(side.names, side.units, strict=True):
            first, known = unit_of.setdefault(name, (dataset, unit))
            if known != unit and (not asked or name in asked):
                raise ValueError(
                    f"state {name} is in {known} in {first} and in {unit} in {dataset}: the two cannot be one value; "
                    f"name those to read under model.state.names"
                )
    if not asked:
        _require_one_state({dataset: side.names for dataset, side in sides.items() if side is not None})
    unknown = [name for name in asked if name not in unit_of]
    if unknown or not unit_of:
        there = f"they have {', '.join(unit_of)}" if unit_of else "no store has a state: set model.state None"
        raise ValueError(f"the model reads the state {unknown[0] if unknown else ''}".rstrip() + f", and {there}")
    return tuple(asked) or tuple(unit_of)


def _require_one_state(names_of: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ValueError unless these data sets have the same values: what is called otherwise may be the same thing."""
    for dataset, names in list(names_of.items())[1:]:
        first, known = next(iter(names_of.items()))
        for one, its, other, others in ((dataset, names, first, known), (first, known, dataset, names)):
            alone = [name for name in its if name not in others]
            if alone:
                raise ValueError(
                    f"the states of {first} and {dataset} differ: {one} has {alone[0]}, which {other} does not have; "
                    f"name those to read under model.state.names, or under mixture.states what values are called that "
                    f"are the same in both"
                )
