"""How often each dataset of a mixture is drawn: weights that name their unit, and what they come to over real stores.

Each mixture is one file of `preprocessing/mixtures/`. This is arithmetic only; `loading/mixture_order.py` draws by it.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rt_models.action_space import SPACES, ActionSpace

Unit = Literal["per_sample", "per_transition"]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weights by dataset name. They need not add up to 1.

    `per_sample`: the weight is the share of samples, whatever the dataset's size (RT-1-X). `per_transition`: it is
    multiplied by the dataset's number of steps first (Octo and OpenVLA). Datasets of another action space than `space`
    come into it through `maps` (rt_models/space_map.py), by dataset name.
    """

    name: str
    unit: Unit
    weights: Mapping[str, float]
    space: str = ""
    maps: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [dataset for dataset, weight in self.weights.items() if not 0 < weight < float("inf")]
        if not self.weights:
            raise ValueError(f"mixture {self.name} has no weights")
        if wrong:
            raise ValueError(
                f"mixture {self.name}: every weight must be above 0 and finite, "
                f"that of {wrong[0]} is {self.weights[wrong[0]]}"
            )

    def shares(self, steps: Mapping[str, int]) -> dict[str, float]:
        """The asked share of samples of each store; `steps` are their sizes by dataset name.

        Datasets that are not there leave their share to the others, in proportion. Raises ValueError for a dataset
        without a weight or without steps.
        """
        if not steps:
            raise ValueError(f"mixture {self.name} needs at least one store")
        unasked = [name for name in steps if name not in self.weights]
        if unasked:
            known = ", ".join(self.weights)
            raise ValueError(f"mixture {self.name} has no weight for {unasked[0]!r}: its datasets are {known}")
        empty = [name for name, count in steps.items() if count < 1]
        if empty:
            raise ValueError(f"mixture {self.name}: the store of {empty[0]} has no steps to draw")
        sizes = {name: count if self.unit == "per_transition" else 1 for name, count in steps.items()}
        masses = {name: self.weights[name] * size for name, size in sizes.items()}
        return {name: mass / sum(masses.values()) for name, mass in masses.items()}


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The share of samples of each dataset of a run. Without `name` and `weights` every step is drawn equally often."""

    name: str = ""
    """A mixture of preprocessing/mixtures, such as rt1x; it also says what its weights mean."""
    unit: Unit = "per_sample"
    """What `weights` are: shares of samples whatever a dataset's size, or factors on its number of steps."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight by dataset name, of any scale; they are laid over those of `name`."""
    space: str = ""
    """Common action space that datasets of different spaces train in: one that ships, such as rt1-11d, or that of one
    of the datasets, by the name that its spec gives it; needed only for such."""
    maps: dict[str, str] = field(default_factory=dict)
    """By dataset name, the map from its own space into `space`, such as "world_vector = position_delta;
    gripper_closedness_action = -2 * gripper_open + 1"; they are laid over those of `name`."""
    states: dict[str, str] = field(default_factory=dict)
    """By dataset name, common names of values of the state that other datasets call otherwise, such as
    "state/x = robot_obs/ee_x; state/y = robot_obs/ee_y": common = own."""

    def common(self, spaces: Sequence[ActionSpace] = ()) -> tuple[ActionSpace | None, Mapping[str, str]]:
        """(the common space, None without one, and the maps into it); `spaces` are those of the datasets.

        Raises ValueError for an unknown space, and for a name that two datasets give to different spaces.
        """
        named = load(self.name) if self.name else None
        space = self.space or (named.space if named else "")
        maps = {**(named.maps if named else {}), **self.maps}
        known: dict[str, ActionSpace] = dict(SPACES)
        for own in spaces:
            if own.name == space and known.setdefault(space, own).identity != own.identity:
                raise ValueError(f"mixture.space {space!r} names different action spaces of the datasets: rename one")
        if space and space not in known:
            own_names = dict.fromkeys(own.name for own in spaces if own.name not in SPACES)
            there = ", ".join([*SPACES, *own_names])
            raise ValueError(f"mixture.space {space!r} is no action space: there are {there}")
        if maps and not space:
            raise ValueError("mixture.maps lead into a common space: name it with mixture.space")
        return known.get(space), maps

    def build(self) -> Mixture | None:
        """None if nothing is asked for. Raises ValueError for a mixture that does not exist or a wrong weight."""
        if self.name:
            named = load(self.name)
            return Mixture(name=self.name, unit=named.unit, weights={**named.weights, **self.weights})
        return Mixture(name="of this run", unit=self.unit, weights=self.weights) if self.weights else None

    def shares(self, steps: Mapping[str, int]) -> dict[str, float] | None:
        """The asked share of each store, or None. Raises ValueError if weights and stores do not fit together."""
        unknown = [name for name in self.weights if name not in steps]
        if unknown:
            raise ValueError(
                f"mixture.weights names {unknown[0]!r}, which no store holds: there are {', '.join(steps)}"
            )
        mixture = self.build()
        return None if mixture is None else mixture.shares(steps)


def names() -> list[str]:
    """The mixtures of `preprocessing/mixtures/`, by file name."""
    import preprocessing.mixtures

    return sorted(module.name for module in pkgutil.iter_modules(preprocessing.mixtures.__path__))


def load(name: str) -> Mixture:
    """The mixture of a file of `preprocessing/mixtures/`. ValueError with the nearest name for another."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"there is no mixture {name!r}: {hint}")
    return importlib.import_module(f"preprocessing.mixtures.{name}").MIXTURE
