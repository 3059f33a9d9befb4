"""What a robot says of itself, against what its policy learned: names, order and units of actions and state.

A robot need not say anything. What it says must agree to the letter: numbers in another order or unit are other
motions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rt_models.spec import Contract, DatasetContract

DECLARATIONS = ("action_names", "action_units", "state_names", "state_units")


def require_declared(declared: Mapping[str, object], contract: Contract, dataset: DatasetContract) -> None:
    """Raise ValueError naming the first value whose name, place or unit is another than the policy's.

    `declared`: lists of texts under some of `DECLARATIONS`.
    """
    space, side = dataset.acted(contract.action)
    state = dataset.state
    known = {
        "action_names": space.names,
        "action_units": side.units,
        "state_names": () if state is None else state.recorded_names,
        "state_units": () if state is None else state.units,
    }
    for field, said in declared.items():
        if field not in DECLARATIONS:
            raise ValueError(f"there is no declaration {field!r:.60}: a robot may say {', '.join(DECLARATIONS)}")
        names = known[field.replace("units", "names")]
        _require_same(field, _texts(field, said), known[field], names)


def _texts(field: str, said: object) -> list[str]:
    if isinstance(said, list | tuple) and all(isinstance(name, str) for name in said):
        return list(said)
    raise ValueError(f"{field} must be a list of texts, got {said!r:.60}")


def _require_same(field: str, said: Sequence[str], ours: Sequence[str], names: Sequence[str]) -> None:
    whose = field.partition("_")[0]
    if field.endswith("names") and sorted(said) == sorted(ours) and list(said) != list(ours):
        place = next(number for number, (mine, other) in enumerate(zip(ours, said, strict=True)) if mine != other)
        raise ValueError(
            f"the robot's {whose} has {said[place]} at place {place}, where the policy has {ours[place]}: the order "
            f"must be {', '.join(ours)}"
        )
    if len(said) != len(ours):
        raise ValueError(f"the robot's {whose} has {len(said)} values and the policy's {len(ours)}: {', '.join(names)}")
    for name, mine, other in zip(names, ours, said, strict=True):
        if mine != other and field.endswith("units"):
            raise ValueError(f"{whose} {name} is in {other} on the robot and in {mine} in the policy")
        if mine != other:
            raise ValueError(f"the robot's {whose} has {other}, where the policy has {mine}")
