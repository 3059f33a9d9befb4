"""Actions against the state that follows them: displacement or place, unit, lag, and the gripper's sign."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preprocessing.arm_state import arm_columns, displacements
from preprocessing.audit.evidence import FEWEST_STEPS, Finding, Track, Verdict, unknown
from preprocessing.audit.likeness import ABSOLUTE, LIKE, allowed_lag, correlation, lagged
from preprocessing.dataset_spec import GROUPS
from preprocessing.store.episode_store import EpisodeStore

_CLEARLY = 0.05  # by which an implausible lag must fit better than any plausible one: smooth motion fits several
_SPAN = 4  # steps looked at before and behind


def motion(store: EpisodeStore, tracks: list[Track]) -> list[Verdict]:
    """Whether translation and rotation are displacements in the declared unit, and how many steps they lead by."""
    position = _measured(store, tracks, "world_vector", "m")
    rotation = _measured(store, tracks, "rotation_delta", "rad")
    return [
        *_motion_verdicts("world_vector", position),
        *_motion_verdicts("rotation_delta", rotation),
        _lag(position, allowed_lag(store)),
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Motion:
    """Commands of D axes against the state's displacements, over all tracks.

    `likeness` maps a lag in steps to the mean correlation over axes of the command of step t with the displacement
    from t + lag to t + lag + 1; `state_likeness` is that with the state itself, the best of those lags. `scale` is
    command by displacement (ratio of standard deviations) at the best lag.
    """

    unit: str
    declared_unit: str
    likeness: dict[int, float]
    state_likeness: float
    scale: float

    @property
    def lag(self) -> int:
        return max(self.likeness, key=lambda lag: self.likeness[lag])

    @property
    def best(self) -> float:
        return self.likeness[self.lag]

    @property
    def absolute(self) -> bool:
        return self.state_likeness >= ABSOLUTE and self.state_likeness > self.best

    @property
    def displaces(self) -> bool:
        return self.best >= LIKE and not self.absolute


def _measured(store: EpisodeStore, tracks: list[Track], group: str, unit: str) -> _Motion | None:
    """None if the dataset lacks the command or the state, or has too few steps to tell."""
    dataset = store.dataset
    group_slice = GROUPS[group]
    sensed = {d: c for d, c in arm_columns(store).items() if group_slice.start <= d < group_slice.stop}
    pairs = [(t.action_TA[:, list(sensed)], t.proprio_TP[:, list(sensed.values())]) for t in tracks]
    if not sensed or sum(len(command) - 1 for command, _ in pairs) < FEWEST_STEPS:
        return None
    steps = [(command, displacements(state, np.array(unit == "rad"))) for command, state in pairs]
    lags = range(-_SPAN, allowed_lag(store) + _SPAN)
    likeness = {lag: correlation(*lagged(steps, lag)) for lag in lags}
    command_ND, step_ND = lagged(steps, max(likeness, key=lambda lag: likeness[lag]))
    moved = float(np.sqrt(step_ND.var(axis=0).sum()))
    return _Motion(
        unit=unit,
        declared_unit=dataset.units[group_slice.start],
        likeness=likeness,
        state_likeness=max(correlation(*lagged(pairs, lag)) for lag in lags),
        scale=float(np.sqrt(command_ND.var(axis=0).sum())) / moved if moved else 0.0,
    )


def _motion_verdicts(group: str, motion: _Motion | None) -> list[Verdict]:
    """Whether the command is a displacement, and in the declared unit."""
    names = (f"{group}_is_a_displacement", f"{group}_unit")
    if motion is None:
        return [unknown(name, "the store has no command with a state of its kind, or too few steps") for name in names]
    likeness = (
        f"it correlates {motion.best:.2f} with the state's displacement and {motion.state_likeness:.2f} "
        f"with the state itself"
    )
    if motion.absolute:
        wrong = f"the command is a place, not a displacement: {likeness}"
        return [
            Verdict(name=names[0], finding="contradicted", measured=motion.state_likeness, sentence=wrong),
            unknown(names[1], "no displacement, no scale"),
        ]
    finding: Finding = "holds" if motion.displaces else "unknown"
    return [Verdict(name=names[0], finding=finding, measured=motion.best, sentence=likeness), _unit(names[1], motion)]


def _unit(name: str, motion: _Motion) -> Verdict:
    effect = f"one declared {motion.declared_unit} of command moves the state by {1 / max(motion.scale, 1e-9):.3g}"
    sentence = f"{effect} {motion.unit} (scale {motion.scale:.3g})"
    if not motion.displaces or motion.declared_unit != motion.unit:
        return Verdict(name=name, finding="unknown", measured=motion.scale, sentence=sentence)
    # A command may overshoot or be cut short, but neither by a factor that a wrong unit has (57, 100, 1000).
    finding: Finding = (
        "holds" if 0.4 <= motion.scale <= 2.5 else "unknown" if 0.2 < motion.scale < 5 else "contradicted"
    )
    return Verdict(name=name, finding=finding, measured=motion.scale, sentence=sentence)


def _lag(motion: _Motion | None, allowed: int) -> Verdict:
    name = "action_to_state_lag"
    if motion is None or not motion.displaces:
        return unknown(name, "no displacement follows the command clearly")
    ahead = motion.best - max(motion.likeness[lag] for lag in range(allowed + 1))
    finding: Finding = "holds" if ahead <= 0 else "unknown" if ahead < _CLEARLY else "contradicted"
    sentence = (
        f"the command of step t fits best (correlation {motion.best:.2f}) the motion that begins at step "
        f"t{motion.lag:+d}; 0 to {allowed} is plausible"
    )
    return Verdict(name=name, finding=finding, measured=motion.lag, sentence=sentence)


# --- Gripper ---


def gripper(store: EpisodeStore, tracks: list[Track]) -> Verdict:
    """Sign of the command against the gripper's later opening (absolute), or the change of it (relative)."""
    name = "gripper_sign"
    place = GROUPS["gripper_closedness_action"].start
    sensed = gripper_column(store)
    if sensed is None or not store.dataset.action_mask[place]:
        return unknown(name, "the store has no gripper command, or no gripper in its proprioception with a known sign")
    column, sign = sensed
    relative = store.manifest.gripper == "relative"
    most = max(2, round(store.dataset.control_hz))
    correlations = [0.0]
    for later in range(1, most + 1):
        pairs = [
            (t.action_TA[:, [place]], sign * t.proprio_TP[:, [column]]) for t in tracks if len(t.action_TA) > later
        ]
        if relative:
            pairs = [(command, closed[later:] - closed[:-later]) for command, closed in pairs]
        correlations.append(correlation(*lagged(pairs, 0 if relative else later)) if pairs else 0.0)
    best = max(correlations, key=abs)
    enough = 0.3 if relative else LIKE  # a relative command is 0 most of the time
    finding: Finding = "unknown" if abs(best) < enough else "holds" if best > 0 else "contradicted"
    sentence = f"a closing command correlates {best:+.2f} with the gripper's {'closing' if relative else 'closedness'} "
    return Verdict(name=name, finding=finding, measured=best, sentence=f"{sentence}within 1 s after it")


def gripper_column(store: EpisodeStore) -> tuple[int, int] | None:
    """(proprioceptive column, sign): +1 if its values grow on closing, -1 if they grow on opening. None without one."""
    proprio = store.manifest.proprio
    for column, (path, unit) in enumerate(zip(proprio.names, proprio.units, strict=True)):
        if unit == "openness" or (path.endswith("/width") and unit == "m"):
            return column, -1
        if unit == "closedness":
            return column, 1
    return None
