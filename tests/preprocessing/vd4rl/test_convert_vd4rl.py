"""V-D4RL folder -> store, without a spec file: the actuators' space, the rate, every reward, frames without loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preprocessing.audit.store_audit import audit, blocking
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.tiny_vd4rl import HDF5, NPZ, SIDES, Recorded, drawn, recorded, write


def converted(folder: Path, out: Path) -> EpisodeStore:
    convert(str(folder), str(out), ConvertConfig(encoder="hash", workers=0))
    return EpisodeStore.open(str(out))


def floats(store: EpisodeStore, episode: int, column: str) -> np.ndarray:
    table = store.read_episode(0, episode, [column])
    return np.asarray(table[column].combine_chunks().flatten()).reshape(table.num_rows, -1)


@pytest.mark.parametrize("layout", [HDF5, NPZ])
@pytest.mark.parametrize("task, size, hz", [("walker_walk", 6, 20), ("cheetah_run", 6, 50), ("humanoid_walk", 21, 20)])
def test_a_store_in_the_actuators_space(tmp_path: Path, layout: str, task: str, size: int, hz: float) -> None:
    written = [recorded(seed, 5 + seed, size=size) for seed in range(3)]
    store = converted(write(tmp_path / task / "medium_replay" / layout, layout, written), tmp_path / "out")
    assert (store.manifest.dataset, store.manifest.version) == (f"vd4rl_{task}_medium_replay", layout)
    assert (store.contract.action.name, store.manifest.control_hz) == (f"actuators-{size}d", hz)
    assert {meaning.kind for meaning in store.dataset.meanings} == {"effort"}
    assert store.instruction_texts == [task.replace("_", " ")]
    for number, original in enumerate(written):
        assert_holds(store, number, original, SIDES[layout])


def assert_holds(store: EpisodeStore, number: int, original: Recorded, side: int) -> None:
    assert np.array_equal(floats(store, number, "action"), original.action_NA[1:])
    table = store.read_episode(0, number, ["image", "reward", "is_last", "is_terminal"])
    assert np.array_equal(table["reward"].to_numpy(), original.reward_N[1:])
    frames = [decode_image(frame) for frame in table["image"].to_pylist()]
    assert np.array_equal(frames, drawn(original, side)[:-1])
    assert not any(table["is_terminal"].to_pylist())  # the time was up: the last action is trained on


def test_the_audit_has_nothing_against_it(tmp_path: Path) -> None:
    written = [recorded(seed, 30) for seed in range(3)]
    store = converted(write(tmp_path / "walker_walk/expert/64px", NPZ, written), tmp_path / "out")
    assert blocking(audit(store).verdicts) == []


def test_another_task_needs_a_spec(tmp_path: Path) -> None:
    folder = write(tmp_path / "my_task", NPZ, [recorded(0, 5)])
    with pytest.raises(ValueError, match="there is no dataset spec 'my_task'"):
        converted(folder, tmp_path / "out")
