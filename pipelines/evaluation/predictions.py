"""What a trained policy answers on the steps of a store.

Every step that is trained on is predicted from the recorded frames up to it, in episode order.

Axes: N scored steps, A action dimensions, K fields of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.families.base import ChangeFrames, blank
from pipelines.families.models import Model, family_of
from pipelines.terminal.progress_bar import Count, uncounted
from pipelines.training.data import as_trained
from preprocessing.loading.frozen_state import FrozenStateStore
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import Contract

Perturbation = Literal["none", "blank_images", "swapped_instructions", "frozen_state"]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """All scored steps in episode order. The last two are of models that answer in text: see `PredictedActions`."""

    episode_N: np.ndarray
    step_N: np.ndarray
    physical_NA: np.ndarray
    """The recorded actions."""
    target_tokens_NA: np.ndarray
    tokens_NA: np.ndarray
    valid_mass_NK: np.ndarray | None = None
    invalid_NK: np.ndarray | None = None
    log_likelihood_NAJ: np.ndarray | None = None
    """Of the recorded token, at each of `TEMPERATURES`; None for models that answer in text."""
    confidence_NAJ: np.ndarray | None = None

    @property
    def first_N(self) -> np.ndarray:
        """bool: the first scored step of its episode."""
        return np.diff(self.episode_N, prepend=-1) != 0


def predict_store(
    model: Model,
    contract: Contract,
    store: EpisodeStore,
    *,
    batch: int,
    perturbation: Perturbation = "none",
    change_frames: ChangeFrames | None = None,
    rewording: Mapping[str, str] | None = None,
    counted: Count = uncounted,
) -> Predictions:
    """The model's tokens for every step of `store` that is trained on.

    `rewording` gives instructions, as `told` has them, other words, which the contract's encoder embeds; those it does
    not name stay.
    `counted` is told of every row that is read. Raises ValueError if no step is scored.
    """
    dataset = contract.dataset(store.name)
    if perturbation == "swapped_instructions":
        rewording = _swapped(told(model, store))
    seen = as_trained(store, contract)
    if perturbation == "blank_images":
        change_frames = blank
    predicted = family_of(model).predict(
        model,
        contract,
        FrozenStateStore.of(seen) if perturbation == "frozen_state" else seen,
        batch=batch,
        change_frames=change_frames,
        rewording=rewording,
    )
    parts, left = [], store.num_steps
    for part in predicted:
        parts.append(part)
        counted(min(batch, left))
        left -= batch
    if not any(len(part.episode_B) for part in parts):
        raise ValueError(f"{store.root} has no step to score, all are terminal: give another store")

    def joined(column: str) -> np.ndarray:
        return np.concatenate([getattr(part, column) for part in parts])

    in_text, in_one_pass = parts[0].valid_mass_BK is not None, parts[0].log_likelihood_BAJ is not None
    return Predictions(
        episode_N=joined("episode_B"),
        step_N=joined("step_B"),
        physical_NA=dataset.transform.invert(joined("action_BA")),
        target_tokens_NA=joined("target_tokens_BA"),
        tokens_NA=joined("tokens_BA"),
        valid_mass_NK=joined("valid_mass_BK") if in_text else None,
        invalid_NK=joined("invalid_BK") if in_text else None,
        log_likelihood_NAJ=joined("log_likelihood_BAJ") if in_one_pass else None,
        confidence_NAJ=joined("confidence_BAJ") if in_one_pass else None,
    )


def told(model: Model, store: EpisodeStore) -> list[str]:
    """The instructions of `store` as the model is told them: verbs alone where marks say the objects."""
    return list(family_of(model).instructions(model.config, store))


def instructions_of(store: EpisodeStore) -> list[str]:
    """The instruction of each episode, in the store's order."""
    text_of = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
    texts: list[str] = []
    for number, shard in enumerate(store.shards):
        ids = store.read_shard(number, ["instruction"])["instruction"].to_numpy()
        texts += [text_of[ids[end - 1]] for end in np.cumsum(shard.episode_lengths)]
    return texts


def _swapped(texts: Sequence[str]) -> dict[str, str]:
    """Every instruction gets the words of the one before it in the table, the first those of the last."""
    return dict(zip(texts, [texts[-1], *texts[:-1]], strict=True))
