"""What an audit rests on: the verdict with its number, and the episodes that are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from preprocessing.conversion.step_marks import STEP_MARKS
from preprocessing.store.episode_rows import read_episodes
from preprocessing.store.episode_store import EpisodeStore

Finding = Literal["holds", "contradicted", "unknown"]
FEWEST_STEPS = 50  # below, a correlation or a share says nothing
_EPISODES = 512


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One convention. `measured` is the number that decided, in the unit that `sentence` gives, where there is one."""

    name: str
    finding: Finding
    measured: float | None
    sentence: str


def unknown(name: str, reason: str) -> Verdict:
    """What cannot be told from the data, and why."""
    return Verdict(name=name, finding="unknown", measured=None, sentence=reason)


def by_share(name: str, share: float, limit: float, sentence: str) -> Verdict:
    """Contradicted from a share of `limit` on, holds below a tenth of it."""
    finding: Finding = "contradicted" if share >= limit else "holds" if share < limit / 10 else "unknown"
    return Verdict(name=name, finding=finding, measured=share, sentence=sentence)


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """Numbers of one episode, float64: canonical actions, proprioception, and how many steps have each mark.

    A state that is not finite says nothing and reads as 0; `odd_states` counts such steps.
    """

    action_TA: np.ndarray
    proprio_TP: np.ndarray
    odd_states: int
    marks: dict[str, int]


def places(store: EpisodeStore, most: int) -> list[tuple[int, int]]:
    """(shard, episode) of at most `most` episodes spread evenly over the store."""
    ends = np.cumsum([len(shard.episode_lengths) for shard in store.shards])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, min(most, int(ends[-1]))).astype(int))
    shards = np.searchsorted(ends, chosen, side="right")
    starts = np.concatenate([[0], ends])
    return [(int(shard), int(place - starts[shard])) for shard, place in zip(shards, chosen, strict=True)]


def tracks(store: EpisodeStore) -> list[Track]:
    sensed = ["proprio"] if store.manifest.proprio.names else []
    columns = ["action", *sensed, *STEP_MARKS]
    return [_track(table, columns) for table in read_episodes(store, places(store, _EPISODES), columns)]


def _track(table: pa.Table, columns: Sequence[str]) -> Track:
    vectors = {
        name: np.asarray(table[name].combine_chunks().flatten(), np.float64).reshape(table.num_rows, -1)
        if name in columns
        else np.zeros((table.num_rows, 0))
        for name in ("action", "proprio")
    }
    odd_states = int((~np.isfinite(vectors["proprio"])).any(axis=1).sum())
    if odd_states:
        vectors["proprio"] = np.zeros_like(vectors["proprio"])
    marks = {mark: int(np.asarray(table[mark]).sum()) for mark in STEP_MARKS}
    return Track(action_TA=vectors["action"], proprio_TP=vectors["proprio"], odd_states=odd_states, marks=marks)
