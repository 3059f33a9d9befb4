"""V-D4RL folder -> store, without a spec file: the actuators' space, the rate, every reward, frames without loss."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preprocessing.audit.store_audit import audit, blocking
from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import Loader, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from rt_models.spec import AffineTransform
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


def test_training_samples_are_not_in_the_order_of_the_files(tmp_path: Path) -> None:
    """Neighbouring frames look alike: a batch of them is worth little more than one."""
    store = converted(
        write(tmp_path / "walker_walk/expert/64px", NPZ, [recorded(s, 20) for s in range(6)]), tmp_path / "o"
    )
    identity = AffineTransform(name="identity", scale=(1.0,) * 6, offset=(0.0,) * 6)
    with closing(WindowReader([store], [identity], num_steps=4, config=LoaderConfig())) as reader:
        loader = Loader(reader, seed=0, lanes=6, global_batch=24, micro_batch=24)
        with closing(iter(loader)) as stream:  # type: ignore[type-var]
            batch = next(stream)
    places = batch["episode"] * 20 + batch["step"]
    assert len(batch["episode"].unique()) >= 4
    assert (places.diff() == 1).float().mean() < 0.2
    action = np.stack(
        [floats(store, int(e), "action")[int(s)] for e, s in zip(batch["episode"], batch["step"], strict=True)]
    )
    np.testing.assert_array_equal(batch["action"][:, -1], action)


def test_the_audit_has_nothing_against_it(tmp_path: Path) -> None:
    written = [recorded(seed, 30) for seed in range(3)]
    store = converted(write(tmp_path / "walker_walk/expert/64px", NPZ, written), tmp_path / "out")
    assert blocking(audit(store).verdicts) == []


def test_another_task_needs_a_spec(tmp_path: Path) -> None:
    folder = write(tmp_path / "my_task", NPZ, [recorded(0, 5)])
    with pytest.raises(ValueError, match="there is no dataset spec 'my_task'"):
        converted(folder, tmp_path / "out")
