"""Meta-World's tasks under one name, for `rtp simulate --tasks NAME` and `rtp evaluate --env metaworld:NAME`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from preprocessing.simulation.metaworld_rlds import INSTRUCTIONS

# Meta-World's own MT10 (arXiv 1910.10897; `env_dict.MT10_V3`, metaworld 3.1) has reach, push and pick-place, whose
# goals are free points in space that nobody draws. Three tasks stand in their place whose goals are in the picture.
_SEVEN_OF_MT10 = (
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
TASK_SETS: Mapping[str, tuple[str, ...]] = {
    "mt6": (
        "faucet-open-v3",
        "faucet-close-v3",
        "window-open-v3",
        "door-lock-v3",
        "door-unlock-v3",
        "button-press-topdown-v3",
    ),
    "mt10_visible": (*_SEVEN_OF_MT10, "faucet-open-v3", "faucet-close-v3", "door-lock-v3"),
    "mt50": tuple(INSTRUCTIONS),
    "all": tuple(INSTRUCTIONS),
}
_VERSION = "-v3"


def named_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """The tasks that these names mean, with Meta-World's version: each name is a task or one of `TASK_SETS`.

    Raises ValueError for an unknown name, and for a task that is meant twice.
    """
    tasks = [task for name in names for task in TASK_SETS.get(name) or (_task(name),)]
    twice = [task for task in tasks if tasks.count(task) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice: give each task once, {', '.join(TASK_SETS)} being sets of tasks")
    return tuple(tasks)


def _task(name: str) -> str:
    task = name if name.endswith(_VERSION) else name + _VERSION
    if task not in INSTRUCTIONS:
        longer = [each for each in TASK_SETS if name and each.startswith(name)]
        close = longer or difflib.get_close_matches(task, INSTRUCTIONS, n=1)
        raise ValueError(f"Meta-World has no task {name!r}" + (f": did you mean {close[0]}?" if close else ""))
    return task
