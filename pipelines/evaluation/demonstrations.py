"""One recorded demonstration of each task, as the actions that blind replay repeats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from preprocessing.store.episode_store import EpisodeStore

Demonstration = list[dict[str, float]]


def first_demonstrations(stores: Sequence[EpisodeStore], instructions: Mapping[str, str]) -> dict[str, Demonstration]:
    """By task, the actions of the first episode told the task's instruction; tasks without one are left out."""
    demonstrations: dict[str, Demonstration] = {}
    for store in stores:
        texts = set(store.instruction_texts)
        wanted = {text: task for task, text in instructions.items() if task not in demonstrations and text in texts}
        for shard, episode in _episodes(store):
            if not wanted:
                break
            task = wanted.pop(_instruction(store, shard, episode), None)
            if task is not None:
                demonstrations[task] = _actions(store, shard, episode)
    return demonstrations


def _episodes(store: EpisodeStore) -> Iterator[tuple[int, int]]:
    for shard, entry in enumerate(store.shards):
        yield from ((shard, episode) for episode in range(len(entry.episode_lengths)))


def _instruction(store: EpisodeStore, shard: int, episode: int) -> str:
    number = store.read_episode(shard, episode, ["instruction"])["instruction"][0].as_py()
    return store.instruction_texts[int(np.searchsorted(store.instruction_ids, number))]


def _actions(store: EpisodeStore, shard: int, episode: int) -> Demonstration:
    """Physical values of the dimensions that the dataset has and that are no classes, of every step but the last."""
    action_TA = np.array(store.read_episode(shard, episode, ["action"])["action"].to_pylist(), np.float64)
    dimensions = store.contract.action.dimensions
    kept = [
        (place, dimension.name)
        for place, (dimension, is_there) in enumerate(zip(dimensions, store.dataset.action_mask, strict=True))
        if is_there and not dimension.discrete
    ]
    return [{name: float(action_A[place]) for place, name in kept} for action_A in action_TA[:-1]]
