"""Off-policy estimates of a policy's return on a store whose steps have rewards: `rtp evaluate --off-policy`."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.off_policy import (
    ImportanceEstimate,
    OffPolicyReport,
    RecordedSteps,
    fitted_q_return,
    importance_sampled_return,
    recorded_return,
)
from pipelines.evaluation.predictions import Predictions
from pipelines.evaluation.statistics import Bootstrap
from pipelines.families.base import TEMPERATURES
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import thumbnail
from preprocessing.store.web_store import WebStore

_SIDE, _COMPONENTS = 8, 8  # of the small pictures; of what is kept of them, or of a state
_ONE = TEMPERATURES.index(1.0)
FITTED_Q_ASSUMES = (
    "Fitted Q evaluation assumes that a return is a quadratic function of the state that is named here and of the "
    "action, that this state tells what comes next, and that the recorded episodes hold actions like the policy's. Its "
    "interval is over episodes and knows nothing of these assumptions."
)
SAMPLING_ASSUMES = (
    "Weighted importance sampling assumes that --behaviour is the policy that acted, and that the policy draws its "
    "actions from its probabilities, each dimension by itself. Where it is worth few episodes it says little."
)


def off_policy_report(
    store: EpisodeStore,
    predictions: Predictions,
    predicted_NA: np.ndarray,
    behaviour: Predictions | None,
    bootstrap: Bootstrap,
) -> OffPolicyReport:
    """`predicted_NA` are the policy's physical actions, `behaviour` what a model of the policy that acted predicts. The
    store has rewards."""
    steps, row_N = _recorded_steps(store, predictions)
    state_ND, described = _states(store, row_N, predictions.step_N)
    moves_A = np.flatnonzero(np.isfinite(predicted_NA).all(axis=0) & (np.ptp(predictions.physical_NA, axis=0) > 0))
    spread_A = predictions.physical_NA[:, moves_A].std(axis=0)
    acted_NF, own_NF = (
        _features(state_ND, action[:, moves_A] / spread_A) for action in (predictions.physical_NA, predicted_NA)
    )
    return OffPolicyReport(
        episodes=len(steps.ended_E),
        recorded_return=recorded_return(steps, bootstrap),
        state=described,
        fitted_q=fitted_q_return(steps, acted_NF, own_NF, bootstrap),
        importance=None if behaviour is None else _sampled(steps, predictions, behaviour, moves_A, bootstrap),
        assumptions=(FITTED_Q_ASSUMES,) if behaviour is None else (FITTED_Q_ASSUMES, SAMPLING_ASSUMES),
    )


def require_rewards(store: EpisodeStore | WebStore) -> None:
    """Raise ValueError for a store in which a step has none."""
    if isinstance(store, WebStore):
        raise ValueError(f"{store.root} holds image-text examples, which have no rewards: leave out --off-policy")
    if any(store.read_shard(number, ["reward"])["reward"].null_count for number in range(len(store.shards))):
        raise ValueError(f"{store.root} has steps without a reward: leave out --off-policy")


def _recorded_steps(store: EpisodeStore, predictions: Predictions) -> tuple[RecordedSteps, np.ndarray]:
    """The scored steps, and the row of each. The reward of a terminal step, which nothing is predicted for, counts with
    the step before it."""
    tables = [store.read_shard(number, ["reward", "is_terminal"]) for number in range(len(store.shards))]
    reward_R, terminal_R = (
        np.concatenate([table[name].to_numpy() for table in tables]) for name in ("reward", "is_terminal")
    )
    lengths_E = np.concatenate([np.asarray(shard.episode_lengths) for shard in store.shards])
    firsts_E = np.cumsum(lengths_E) - lengths_E
    episode_R = np.repeat(np.arange(len(lengths_E)), lengths_E)
    row_N = firsts_E[predictions.episode_N] + predictions.step_N
    step_R = np.searchsorted(row_N, np.arange(len(reward_R)), side="right") - 1
    counted_R = (step_R >= 0) & (predictions.episode_N[step_R] == episode_R)
    ended_E = np.bincount(episode_R, weights=terminal_R, minlength=len(lengths_E)) > 0
    steps = RecordedSteps(
        episode_N=predictions.episode_N,
        reward_N=np.bincount(step_R[counted_R], weights=reward_R[counted_R], minlength=len(row_N)),
        ended_E=ended_E[np.unique(predictions.episode_N)],
    )
    return steps, row_N


def _states(store: EpisodeStore, row_N: np.ndarray, step_N: np.ndarray) -> tuple[np.ndarray, str]:
    """float64 (N, D) of unit spread, and what it is in words: the recorded state, else small pictures."""
    names = store.manifest.proprio.names
    if names:
        columns = [store.read_shard(number, ["proprio"])["proprio"] for number in range(len(store.shards))]
        state_RP = np.concatenate([column.combine_chunks().flatten().to_numpy() for column in columns])
        state_NP = state_RP.reshape(-1, len(names))[row_N].astype(np.float64)
        if np.isfinite(state_NP).all():
            return _principal(state_NP), f"the recorded state ({len(names)} values)"
    pictures_RP = np.concatenate([_small_pictures(store, number) for number in range(len(store.shards))])
    before_N = rows_before(row_N, step_N)
    pair_NP = np.hstack([pictures_RP[row_N], pictures_RP[row_N] - pictures_RP[before_N]])
    return _principal(pair_NP), f"the frame and its change, {_SIDE}x{_SIDE} grey"


def rows_before(row_N: np.ndarray, step_N: np.ndarray) -> np.ndarray:
    """int64 (N,): the row of the step before; its own if it is an episode's first or that one was not scored."""
    return np.where((step_N > 0) & np.isin(row_N - 1, row_N), row_N - 1, row_N)


def _small_pictures(store: EpisodeStore, shard: int) -> np.ndarray:
    groups = range(-(-store.shards[shard].rows // store.shards[shard].row_group_rows))
    frames = (frame for group in groups for frame in store.read_rows(shard, group, ["image"])["image"].to_pylist())
    return np.stack([thumbnail(frame, _SIDE).mean(axis=2).reshape(-1) for frame in frames])


def _principal(value_NP: np.ndarray) -> np.ndarray:
    """The directions in which the values vary most, at most `_COMPONENTS`, each of unit spread."""
    centred_NP = value_NP - value_NP.mean(axis=0)
    if value_NP.shape[1] > _COMPONENTS:
        _, _, direction_PP = np.linalg.svd(centred_NP.T @ centred_NP, hermitian=True)
        centred_NP = centred_NP @ direction_PP[:_COMPONENTS].T
    spread_P = centred_NP.std(axis=0)
    return centred_NP[:, spread_P > 1e-9] / spread_P[spread_P > 1e-9]


def _features(state_ND: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
    """1, state, action, their squares, and the products of a value of the state and one of the action."""
    products_N = (state_ND[:, :, None] * action_NA[:, None, :]).reshape(len(state_ND), -1)
    ones_N = np.ones((len(state_ND), 1))
    return np.hstack([ones_N, state_ND, action_NA, state_ND**2, action_NA**2, products_N])


def _sampled(
    steps: RecordedSteps, policy: Predictions, behaviour: Predictions, moves_A: np.ndarray, bootstrap: Bootstrap
) -> ImportanceEstimate:
    if policy.log_likelihood_NAJ is None or behaviour.log_likelihood_NAJ is None:
        raise ValueError("--behaviour needs the probabilities of actions: models that answer in text have none here")
    if not np.array_equal(policy.target_tokens_NA, behaviour.target_tokens_NA):
        raise ValueError(
            "--behaviour is a model with other bins or scaling than MODEL: their probabilities do not compare"
        )
    ratio_NA = policy.log_likelihood_NAJ[:, :, _ONE] - behaviour.log_likelihood_NAJ[:, :, _ONE]
    return importance_sampled_return(steps, ratio_NA[:, moves_A].sum(axis=1), bootstrap)
