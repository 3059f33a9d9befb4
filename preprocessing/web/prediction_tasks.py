"""RT-2's prediction tasks from the episodes of a store: what a model can be asked about robot frames beside the action.

For Language-Table the paper (arXiv 2307.15818) trains on four: the instruction, the arm's position, the number of steps
between two frames, and whether the task was done. Which frames are shown and how answers are written it does not say.
Here the instruction is asked from the first and the last frame, the position from one, in whole centimetres, and
success from the first and a later one: it is there once a reward above 0 was given. That holds where a store knows two
rewards, 0 and one above it; others measure how well it goes. What a store does not record is not asked, and no answer
is guessed: an episode whose instruction changes is not asked for it, nor for success.

Axes: N steps of a shard, T steps of an episode, P values of a position.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.store_manifest import Proprioception
from preprocessing.web.records import WebExample, WebRecord
from preprocessing.web.texts import unusable

Task = Literal["instruction", "position", "steps", "success"]
TASKS: tuple[Task, ...] = get_args(Task)
MOST_PICTURES = 2  # of one question
_GROUPS_IN_MEMORY = 8  # row groups of frames: an episode's lie in neighbouring ones
_CM = 100
_OF_INSTRUCTION: tuple[Task, ...] = ("instruction", "success")

_CHANGES = "its instruction changes during the episode"
_INSTRUCTION = "what was the robot told to do?"
_STEPS = "how many steps lie between the pictures?"
_SUCCESS = "has the robot done this: {}?"


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Which tasks are asked, and so many questions of each about one episode (one about its instruction)."""

    tasks: tuple[Task, ...] = TASKS
    per_episode: int = 4


def missing_for(store: EpisodeStore) -> dict[Task, str]:
    """The tasks that the store cannot answer, each with what it lacks."""
    lacks: dict[Task, str] = {}
    if not any(text.strip() for text in store.instruction_texts):
        lacks["instruction"] = "no step has an instruction"
    if not _position_columns(store.manifest.proprio):
        lacks["position"] = "its state has no x and y in metres"
    if lack := _lack_of_rewards(store) or lacks.get("instruction"):
        lacks["success"] = lack
    return lacks


def _lack_of_rewards(store: EpisodeStore) -> str | None:
    """Why the rewards do not say whether the task was done, or None. Reads shards until that is settled."""
    rewards: set[float] = set()
    for shard in range(len(store.shards)):
        rewards.update(np.unique(store.read_shard(shard, ["reward"])["reward"].to_numpy()).tolist())
        if not all(map(math.isfinite, rewards)):
            return "a reward is not a number"
        if len(rewards) > 2:
            return "its rewards are more than two numbers: they measure how well it goes"
    if not any(reward > 0 for reward in rewards):
        return "no reward is above 0"
    return None if 0 in rewards else "no reward is 0: none tells what is not done yet"


def _position_columns(proprio: Proprioception) -> list[int]:
    """The places of x, y and, if it is there, z in metres, those of the first field that has x and y."""
    metres = {name: i for i, (name, unit) in enumerate(zip(proprio.names, proprio.units, strict=True)) if unit == "m"}
    for name in metres:
        field, _, axis = name.rpartition("/")
        places = [metres[f"{field}/{a}"] for a in "xyz" if f"{field}/{a}" in metres]
        if axis == "x" and len(places) > 1 and f"{field}/y" in metres:
            return places
    return []


@dataclass(frozen=True, kw_only=True)
class _Episode:
    """One episode; `instruction` None if it changes, `position_TP` in metres or None, `done_T` whether a reward was
    given by then."""

    instruction: str | None
    position_TP: np.ndarray | None
    done_T: np.ndarray

    @property
    def last(self) -> int:
        return len(self.done_T) - 1


def records(store: EpisodeStore, shard: int, asked: Questions) -> Iterator[WebRecord]:
    """A record for each set of frames that something is asked about, episode by episode of one shard."""

    @lru_cache(_GROUPS_IN_MEMORY)
    def frames(group: int) -> list[bytes]:
        return store.read_rows(shard, group, ["image"])["image"].to_pylist()

    first, name, group_rows = 0, Path(store.shards[shard].path).name, store.shards[shard].row_group_rows
    for number, episode in enumerate(_episodes(store, shard)):
        random = np.random.default_rng((shard, number))
        for steps, examples in _questions(episode, asked, random).items():
            places = [divmod(first + step, group_rows) for step in steps]
            yield WebRecord(
                place=f"{name}: episode {number}, steps {' '.join(map(str, steps))}",
                images=tuple(frames(group)[inside] for group, inside in places),
                examples=tuple(examples),
            )
        first += episode.last + 1


def _episodes(store: EpisodeStore, shard: int) -> Iterator[_Episode]:
    columns = _position_columns(store.manifest.proprio)
    table = store.read_shard(shard, ["reward", "instruction", *(["proprio"] if columns else [])])
    texts = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
    instruction_N, reward_N = table["instruction"].to_pylist(), table["reward"].to_numpy()
    state_NP = None
    if columns:
        state_NP = table["proprio"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)[:, columns]
    ends = np.cumsum(store.shards[shard].episode_lengths).tolist()
    for start, stop in zip([0, *ends], ends, strict=False):
        yield _Episode(
            instruction=_constant({texts[number].strip() for number in set(instruction_N[start:stop])}),
            position_TP=None if state_NP is None else state_NP[start:stop],
            done_T=np.logical_or.accumulate(reward_N[start:stop] > 0),
        )


def _constant(texts: Collection[str]) -> str | None:
    return next(iter(texts)) if len(texts) == 1 else None


# --- Questions ---


def _questions(
    episode: _Episode, asked: Questions, random: np.random.Generator
) -> Mapping[tuple[int, ...], Sequence[WebExample]]:
    """What is asked about which steps, whose frames are shown in this order."""
    found: dict[tuple[int, ...], list[WebExample]] = {}

    def ask(steps: Sequence[int], question: str, answer: str) -> None:
        shown = tuple(dict.fromkeys(int(step) for step in steps))
        found.setdefault(shown, []).append(WebExample(prompt=question, answer=answer, references=(answer,)))

    left_out = [task for task in _OF_INSTRUCTION if task in asked.tasks] if episode.instruction is None else []
    if left_out:
        found[0, episode.last] = [unusable(f"{_CHANGES}: {task} is not asked") for task in left_out]
    if "instruction" in asked.tasks and episode.instruction:
        ask((0, episode.last), _INSTRUCTION, episode.instruction)
    if "position" in asked.tasks and episode.position_TP is not None:
        known = np.flatnonzero(np.isfinite(episode.position_TP).all(axis=1))
        for step in _drawn(known, asked.per_episode, random):
            ask((step,), *_position(episode.position_TP[step]))
    if "steps" in asked.tasks and episode.last > 0:
        pairs = {tuple(sorted(random.choice(episode.last + 1, 2, replace=False))) for _ in range(asked.per_episode)}
        for early, late in sorted(pairs):
            ask((early, late), _STEPS, str(late - early))
    if "success" in asked.tasks and episode.instruction and episode.last > 0:
        before = np.flatnonzero(~episode.done_T[:-1])[1:]
        for step in (*_drawn(before, asked.per_episode - 1, random), episode.last):
            answer = "yes" if episode.done_T[step] else "no"
            ask((0, step), _SUCCESS.format(episode.instruction.rstrip(".?! ")), answer)
    return found


def _drawn(steps: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """So many of `steps`, in order; all if they are fewer."""
    return np.sort(random.choice(steps, min(count, len(steps)), replace=False))


def _position(metres_P: np.ndarray) -> tuple[str, str]:
    axes = " ".join("xyz"[: len(metres_P)])
    said = " ".join(str(round(float(value) * _CM)) for value in metres_P)
    return f"where is the arm, {axes} in centimetres?", said
