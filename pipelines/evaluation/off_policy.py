"""What a policy's return would be, estimated from episodes that another policy acted. Estimates, not measurements.

Fitted Q evaluation (Le et al., arXiv 1903.08738): Q_k(s, a), the return of k more steps of the policy after the action
a, is a linear function of features; Q_k is fitted to the reward plus Q_{k-1} where the policy would act next. Weighted
importance sampling (Precup et al., ICML 2000): the recorded returns, each weighted by how much likelier its actions are
under the policy than under the one that recorded them.

Axes: N steps in episode order, E episodes, G groups of neighbouring episodes, F features of a step and an action, S
bootstrap samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.statistics import Bootstrap, Interval

_RIDGE = 1e-6  # of the mean square of a feature
_MOST_SAMPLES = 200  # each is a fit
_MOST_GROUPS = 200  # each keeps two F x F matrices


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedSteps:
    """Steps of whole episodes. `ended_E`: nothing follows the episode's last step, its value is 0; otherwise what
    would follow is unknown, and the step is not fitted."""

    episode_N: np.ndarray
    reward_N: np.ndarray
    ended_E: np.ndarray

    def returns_E(self) -> np.ndarray:
        return np.bincount(self._number_N(), weights=self.reward_N)

    def horizon(self) -> int:
        """Steps of the longest episode."""
        return int(np.bincount(self._number_N()).max())

    def firsts_E(self) -> np.ndarray:
        """int: the row of each episode's first step."""
        return np.flatnonzero(np.diff(self.episode_N, prepend=-1))

    def lasts_E(self) -> np.ndarray:
        return np.append(self.firsts_E()[1:], len(self.episode_N)) - 1

    def _number_N(self) -> np.ndarray:
        return np.unique(self.episode_N, return_inverse=True)[1]


def recorded_return(steps: RecordedSteps, bootstrap: Bootstrap) -> Interval:
    """Of the policy that recorded them."""
    returns_E = steps.returns_E()
    return bootstrap.over(np.arange(len(returns_E)))(returns_E)


def fitted_q_return(
    steps: RecordedSteps, acted_NF: np.ndarray, own_NF: np.ndarray, bootstrap: Bootstrap
) -> Interval | None:
    """The mean return of the policy from the episodes' first steps; None where the fit leaves what returns can be.

    `acted_NF` are features of each step with the recorded action, `own_NF` with the policy's. The interval is over
    resampled episodes, beyond 200 over groups of them; it knows nothing of features that cannot express the values.
    """
    sums = _FitSums.of(steps, acted_NF, own_NF)
    horizon, groups = steps.horizon(), len(sums.episodes_G)
    bounds = horizon * min(steps.reward_N.min(), 0.0), horizon * max(steps.reward_N.max(), 0.0)
    mean = sums.value(np.ones(groups), horizon)
    if not bounds[0] <= mean <= bounds[1]:
        return None
    random = np.random.default_rng(bootstrap.seed)
    values = []
    for _ in range(min(bootstrap.samples, _MOST_SAMPLES)):
        weights_G = np.bincount(random.integers(groups, size=groups), minlength=groups).astype(np.float64)
        values.append(np.clip(np.nan_to_num(sums.value(weights_G, horizon), nan=bounds[1]), *bounds))
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(mean=mean, low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True, eq=False)
class _FitSums:
    """Sums over each group's fitted steps: features by features, features by those of what follows, features by reward;
    and over its episodes, features of the first step, and how many they are."""

    square_GFF: np.ndarray
    next_GFF: np.ndarray
    reward_GF: np.ndarray
    first_GF: np.ndarray
    episodes_G: np.ndarray

    @staticmethod
    def of(steps: RecordedSteps, acted_NF: np.ndarray, own_NF: np.ndarray) -> _FitSums:
        episodes, width = len(steps.ended_E), own_NF.shape[1]
        groups = min(episodes, _MOST_GROUPS)
        square_GFF, next_GFF = np.zeros((2, groups, width, width))
        reward_GF, first_GF, episodes_G = np.zeros((groups, width)), np.zeros((groups, width)), np.zeros(groups)
        places = zip(steps.firsts_E(), steps.lasts_E() + 1, steps.ended_E, strict=True)
        for number, (first, stop, ended) in enumerate(places):
            group, fitted = number * groups // episodes, stop if ended else stop - 1
            acted_MF = acted_NF[first:fitted]
            next_MF = np.vstack([own_NF[first + 1 : stop], np.zeros((1, width))])[: len(acted_MF)]
            square_GFF[group] += acted_MF.T @ acted_MF
            next_GFF[group] += acted_MF.T @ next_MF
            reward_GF[group] += acted_MF.T @ steps.reward_N[first:fitted]
            first_GF[group] += own_NF[first]
            episodes_G[group] += 1
        return _FitSums(
            square_GFF=square_GFF, next_GFF=next_GFF, reward_GF=reward_GF, first_GF=first_GF, episodes_G=episodes_G
        )

    def value(self, weights_G: np.ndarray, horizon: int) -> float:
        """The mean of Q_horizon at the first steps, groups counted `weights_G` times."""
        square_FF = np.tensordot(weights_G, self.square_GFF, axes=1)
        ridge = _RIDGE * np.trace(square_FF) / len(square_FF)
        inverse_FF = np.linalg.pinv(square_FF + ridge * np.eye(len(square_FF)), hermitian=True)
        step_FF = inverse_FF @ np.tensordot(weights_G, self.next_GFF, axes=1)
        reward_F = inverse_FF @ (weights_G @ self.reward_GF)
        fitted_F = np.zeros_like(reward_F)
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(horizon):
                fitted_F = reward_F + step_FF @ fitted_F
            return float((weights_G @ self.first_GF) @ fitted_F / (weights_G @ self.episodes_G))


@dataclass(frozen=True, kw_only=True)
class ImportanceEstimate:
    """`effective_episodes`: how many episodes of equal weight would be worth as much. Few: the estimate is of few."""

    returns: Interval
    effective_episodes: float


def importance_sampled_return(
    steps: RecordedSteps, log_ratio_N: np.ndarray, bootstrap: Bootstrap
) -> ImportanceEstimate:
    """`log_ratio_N`: log-likelihood of each recorded action under the policy minus that under the one that acted."""
    log_E = np.add.reduceat(log_ratio_N, steps.firsts_E())
    weight_E, returns_E = np.exp(log_E - log_E.max()), steps.returns_E()
    random = np.random.default_rng(bootstrap.seed)
    draws_SE = random.integers(len(weight_E), size=(bootstrap.samples, len(weight_E)))
    drawn_SE = weight_E[draws_SE]
    total_S = np.maximum(drawn_SE.sum(axis=1), np.finfo(float).tiny)
    low, high = np.quantile((drawn_SE * returns_E[draws_SE]).sum(axis=1) / total_S, [0.025, 0.975])
    mean = float(weight_E @ returns_E / weight_E.sum())
    return ImportanceEstimate(
        returns=Interval(mean=mean, low=float(min(low, mean)), high=float(max(high, mean))),
        effective_episodes=float(weight_E.sum() ** 2 / (weight_E**2).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class OffPolicyReport:
    """Estimates of the return of an episode. `state` names what the fit sees of a step. `fitted_q` is None where the
    fit left what returns can be, `importance` without a model of the policy that acted."""

    episodes: int
    recorded_return: Interval
    state: str
    fitted_q: Interval | None
    importance: ImportanceEstimate | None
    assumptions: tuple[str, ...]
