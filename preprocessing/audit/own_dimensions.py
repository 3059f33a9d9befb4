"""Dimensions of a space other than RT-1's, each against the state column that its spec declares: kind, sign and unit.

A delta or a velocity is compared with the state's displacement, an absolute place with the state itself. From an effort
alone no state follows: it stays unknown.

Axes: N steps, T steps of an episode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocessing.arm_state import displacements
from preprocessing.audit.evidence import FEWEST_STEPS, Finding, Track, Verdict, unknown
from preprocessing.audit.likeness import ABSOLUTE, LIKE, allowed_lag, correlation, lagged
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_space import DimensionMeaning

_IN_BASE = {"m": ("m", 1.0), "cm": ("m", 0.01), "mm": ("m", 0.001), "rad": ("rad", 1.0), "deg": ("rad", math.pi / 180)}
_TURN = {"rad": 2 * math.pi, "deg": 360.0}


def dimension_verdicts(store: EpisodeStore, tracks: Sequence[Track]) -> list[Verdict]:
    """NAME_kind, NAME_sign and NAME_unit of each dimension that the dataset has; classes have none."""
    dataset, action = store.dataset, store.contract.action
    verdicts = []
    for place, dimension in enumerate(action.dimensions):
        if dataset.action_mask[place] and not dimension.discrete:
            verdicts += _judged(store, tracks, place, dataset.meanings[place])
    return verdicts


def _judged(store: EpisodeStore, tracks: Sequence[Track], place: int, meaning: DimensionMeaning) -> list[Verdict]:
    name, proprio = store.contract.action.names[place], store.manifest.proprio
    if meaning.kind == "effort":
        return [unknown(f"{name}_kind", "from an effort alone no motion follows")]
    if not meaning.state:
        return [unknown(f"{name}_kind", "the spec declares no state that it moves")]
    column = proprio.names.index(meaning.state)
    if sum(len(track.action_TA) - 1 for track in tracks) < FEWEST_STEPS:
        return [unknown(f"{name}_kind", f"fewer than {FEWEST_STEPS} steps")]
    pairs = [(track.action_TA[:, [place]], track.proprio_TP[:, [column]]) for track in tracks]
    moves = [(command, _moves(state, proprio.units[column])) for command, state in pairs]
    lags = range(allowed_lag(store) + 2)
    found = _Comparison(
        name=name,
        meaning=meaning,
        as_place=_best(pairs, lags),
        as_move=_best(moves, lags),
        scale=_scale(store, pairs if meaning.kind == "absolute" else moves, lags, meaning),
        units=(store.dataset.units[place], proprio.units[column]),
    )
    return found.verdicts()


def _moves(state_T1: np.ndarray, unit: str) -> np.ndarray:
    """(T - 1, 1) displacements; an angle that passes half a turn goes the short way round."""
    turn = _TURN.get(unit)
    return (
        displacements(state_T1 * (2 * math.pi / turn), np.array(True)) * (turn / (2 * math.pi))
        if turn
        else np.diff(state_T1, axis=0)
    )


def _best(pairs: list[tuple[np.ndarray, np.ndarray]], lags: range) -> float:
    """The correlation of the largest size over the lags, with its sign."""
    return max((correlation(*lagged(pairs, lag)) for lag in lags), key=abs)


def _scale(
    store: EpisodeStore, pairs: list[tuple[np.ndarray, np.ndarray]], lags: range, meaning: DimensionMeaning
) -> float:
    """Command by what it leads to, a ratio of standard deviations, at the lag that fits best."""
    lag = max(lags, key=lambda each: abs(correlation(*lagged(pairs, each))))
    command_N1, response_N1 = lagged(pairs, lag)
    rate = store.dataset.control_hz if meaning.kind == "velocity" else 1.0
    moved = float(response_N1.std()) * rate
    return float(command_N1.std()) / moved if moved else 0.0


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """One dimension against its state: correlations with the state itself and with its displacement; `scale` is command
    by response, `units` are those of command and state."""

    name: str
    meaning: DimensionMeaning
    as_place: float
    as_move: float
    scale: float
    units: tuple[str, str]

    def verdicts(self) -> list[Verdict]:
        kind = self._kind()
        if kind.finding == "contradicted":
            return [kind, *(unknown(f"{self.name}_{what}", "it is of another kind") for what in ("sign", "unit"))]
        return [kind, self._sign(), self._unit()]

    @property
    def _fit(self) -> float:
        return self.as_place if self.meaning.kind == "absolute" else self.as_move

    def _kind(self) -> Verdict:
        likeness = f"it correlates {self.as_move:+.2f} with the displacement of {self.meaning.state}"
        likeness += f" and {self.as_place:+.2f} with {self.meaning.state} itself"
        if self.meaning.kind == "absolute":
            is_other = abs(self.as_move) >= LIKE > abs(self.as_place)
            other = "a displacement, not a place"
        else:
            is_other = self.as_place >= ABSOLUTE and self.as_place > abs(self.as_move)
            other = "a place, not a displacement"
        finding: Finding = "contradicted" if is_other else "holds" if abs(self._fit) >= LIKE else "unknown"
        said = f"declared {self.meaning.kind}, the command is {other}: {likeness}" if is_other else likeness
        return Verdict(name=f"{self.name}_kind", finding=finding, measured=self._fit, sentence=said)

    def _sign(self) -> Verdict:
        enough = ABSOLUTE if self.meaning.kind == "absolute" else LIKE
        finding: Finding = "contradicted" if self._fit <= -enough else "holds" if self._fit >= LIKE else "unknown"
        sentence = f"a growing command goes with {'falling' if self._fit < 0 else 'growing'} {self.meaning.state}"
        return Verdict(
            name=f"{self.name}_sign", finding=finding, measured=self._fit, sentence=f"{sentence} ({self._fit:+.2f})"
        )

    def _unit(self) -> Verdict:
        command, state = self.units
        rate = "/s" if self.meaning.kind == "velocity" else ""
        factor = _factor(command.removesuffix(rate), state) if command.endswith(rate) else None
        scale = self.scale * (factor or 1.0)
        sentence = f"one {command} of command goes with {1 / max(self.scale, 1e-9):.3g} {state}{rate} of state"
        sentence += f" (scale {scale:.3g})"
        if abs(self._fit) < LIKE or factor is None:
            return Verdict(name=f"{self.name}_unit", finding="unknown", measured=scale, sentence=sentence)
        # A command may overshoot or be cut short, but neither by a factor that a wrong unit has (57, 100, 1000).
        finding: Finding = "holds" if 0.4 <= scale <= 2.5 else "unknown" if 0.2 < scale < 5 else "contradicted"
        return Verdict(name=f"{self.name}_unit", finding=finding, measured=scale, sentence=sentence)


def _factor(unit: str, other: str) -> float | None:
    """How many of `other` one `unit` is; None where they do not compare."""
    if unit == other:
        return None if unit in ("unknown", "unitless") else 1.0
    (base, factor), (other_base, other_factor) = (_IN_BASE.get(each, ("", 1.0)) for each in (unit, other))
    return factor / other_factor if base and base == other_base else None
