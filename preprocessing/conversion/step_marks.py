"""is_first, is_last and is_terminal: read leniently, and what they say about where an episode begins and ends.

RLDS sets is_first on the first step of an episode and is_last on the last. Published sets leave one out, set none at
all, or go on setting it to the end; none of that says that a record holds several episodes. A mark that is set, and
unset before, inside of a record does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from preprocessing.tfds.features import Column

STEP_MARKS = ("is_first", "is_last", "is_terminal")


def read_marks(steps: Mapping[str, Column], num_steps: int, *, ignored: Collection[str] = ()) -> dict[str, np.ndarray]:
    """bool (N,) by mark, from numbers of any type and of shape (N,) or (N, 1); NaN is not set.

    Where a mark is absent or `ignored`, the first step is first, the last is last, and none is terminal.
    """
    place = np.arange(num_steps)
    marks = {"is_first": place == 0, "is_last": place == num_steps - 1, "is_terminal": np.zeros(num_steps, bool)}
    for name in STEP_MARKS:
        if name in steps and name not in ignored:
            column = np.asarray(steps[name]).reshape(num_steps)
            marks[name] = (column != 0) & (column == column)
    return marks


def seams(is_first_N: np.ndarray, is_last_N: np.ndarray, begins_N: np.ndarray) -> np.ndarray:
    """bool (N,): steps at which another episode begins inside of a record; `begins_N` marks where records begin."""
    another_begins_N = np.zeros(len(is_first_N), bool)
    another_begins_N[1:] = (is_first_N[1:] & ~is_first_N[:-1]) | (is_last_N[:-1] & ~is_last_N[1:])
    return another_begins_N & ~begins_N


def require_one_episode(marks: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if the marks of a record say that another episode begins in its middle."""
    is_first_N, is_last_N = marks["is_first"], marks["is_last"]
    begins_N = np.arange(len(is_first_N)) == 0
    inside = np.flatnonzero(seams(is_first_N, is_last_N, begins_N))
    if not len(inside):
        return
    step = int(inside[0])
    causes = [f"is_last at step {step - 1}"] if is_last_N[step - 1] and not is_last_N[step] else []
    causes += [f"is_first at step {step}"] if is_first_N[step] and not is_first_N[step - 1] else []
    raise ValueError(
        f"another episode begins in the middle, at step {step} of {len(is_first_N)} ({' and '.join(causes)}): "
        f"write one episode per record, or name the mark under ignored_marks of the dataset spec if it means "
        f"something else"
    )
