"""V-D4RL in both layouts: the frame with the action that follows it, every reward once, and damage by its episode."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.episode_source import open_source
from preprocessing.rlds import Corrupt, Episode
from preprocessing.vd4rl.dataset import aligned, open_vd4rl
from preprocessing.vd4rl.rows import EpisodeFrames
from tests.support.tiny_vd4rl import HDF5, NPZ, SIDES, copied_from, drawn, recorded, write, write_hdf5, write_npz

LAYOUTS = pytest.mark.parametrize("layout", [HDF5, NPZ])


def read(folder: Path, split: str = "train") -> list[Episode | Corrupt]:
    dataset = open_source(str(folder))
    return [item for shard in dataset.shards(split) for item in dataset.read_shard(shard)]


def episodes_of(folder: Path, split: str = "train") -> list[Episode]:
    found = [item for item in read(folder, split) if isinstance(item, Episode)]
    assert len(found) == len(read(folder, split))
    return found


# --- Pairing ---


@LAYOUTS
def test_a_frame_is_paired_with_the_action_that_follows_it(tmp_path: Path, layout: str) -> None:
    written = [recorded(seed, 5 + seed) for seed in range(3)]
    folder = write(tmp_path / layout, layout, written)
    for item, original in zip(episodes_of(folder), written, strict=True):
        assert item.num_steps == len(original.number_N) - 1
        frames = np.asarray(item.steps["observation/image"])
        assert np.array_equal(frames, drawn(original, SIDES[layout])[:-1])
        assert np.array_equal(item.steps["action"], original.action_NA[1:])
        assert np.asarray(item.steps["is_first"]).tolist() == [True] + [False] * (item.num_steps - 1)
        assert np.asarray(item.steps["is_last"]).tolist() == [False] * (item.num_steps - 1) + [True]


@LAYOUTS
def test_a_policy_that_copies_the_last_action_is_caught(tmp_path: Path, layout: str) -> None:
    """Every frame shows the action that led to it. Under the wrong row copying it would be perfect."""
    (item,) = episodes_of(write(tmp_path / layout, layout, [recorded(0, 60)]))
    shown_N = np.asarray(item.steps["observation/image"])[:, 0, 0, 1].astype(int)
    wanted_N = copied_from(np.asarray(item.steps["action"])[:, 0]).astype(int)
    assert np.abs(shown_N - wanted_N).mean() > 40  # of 254; two uniform draws differ by 85
    assert np.array_equal(shown_N[1:], wanted_N[:-1])  # what it shows is the action of the step before


@LAYOUTS
def test_the_return_is_whole(tmp_path: Path, layout: str) -> None:
    """Every reward counts once, that of the last decision included; the first row brought none."""
    written = [recorded(seed, 50) for seed in range(2)]
    for item, original in zip(episodes_of(write(tmp_path / layout, layout, written)), written, strict=True):
        assert float(np.sum(item.steps["reward"])) == pytest.approx(float(original.reward_N.sum()), rel=1e-6)
        assert np.array_equal(item.steps["reward"], original.reward_N[1:])


@given(count=st.integers(2, 30), size=st.sampled_from([6, 21]), seed=st.integers(0, 99))
def test_alignment_keeps_every_action_and_reward_but_row_0(count: int, size: int, seed: int) -> None:
    one = recorded(seed, count - 1, size=size)
    frames = np.broadcast_to(one.number_N[:, None, None, None], (count, 2, 2, 3)).astype(np.uint8)
    rows = EpisodeFrames(
        image_NHWC=frames,
        action_NA=one.action_NA,
        reward_N=one.reward_N,
        discount_N=np.ones(count),
        state={"height": one.number_N},
    )
    columns = {name: np.asarray(column) for name, column in aligned(rows).items()}
    assert {len(column) for column in columns.values()} == {count - 1}
    for step in range(count - 1):
        assert columns["observation/image"][step, 0, 0, 0] == columns["observation/height"][step] == step
        assert np.array_equal(columns["action"][step], one.action_NA[step + 1])


# --- Layouts ---


def test_several_shards_of_several_episodes_with_step_types_as_floats(tmp_path: Path) -> None:
    written = [recorded(seed, 4 + seed) for seed in range(5)]
    folder = write_hdf5(tmp_path / "walker_walk/expert/84px", [written[:3], written[3:]], kind="float32")
    dataset = open_source(str(folder))
    assert (dataset.name, dataset.version, dataset.control_hz) == ("vd4rl_walker_walk_expert", "84px", 20)
    assert [shard.num_records for shard in dataset.shards("train")] == [3, 2]
    assert [item.num_steps for item in episodes_of(folder)] == [4, 5, 6, 7, 8]
    assert [item.metadata["task"] for item in episodes_of(folder, "train[1:2]")] == [b"walker walk"]
    assert [item.num_steps for item in episodes_of(folder, "train[2:4]")] == [6, 7]


def test_npz_episodes_keep_the_simulator_s_state(tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "humanoid_walk/medium/64px", [recorded(0, 4, size=21)])
    dataset = open_source(str(folder))
    assert dataset.feature("action").shape == (21,)
    assert dataset.feature("observation/velocity").shape == (9,)
    assert np.asarray(episodes_of(folder)[0].steps["observation/height"]).tolist() == [0, 1, 2, 3]


def test_shards_divide_into_parts(tmp_path: Path) -> None:
    folder = write_hdf5(tmp_path / "84px", [[recorded(seed, 3 + seed) for seed in range(6)]])
    dataset = open_vd4rl(str(folder))
    (shard,) = dataset.shards("train")
    lengths = [item.num_steps for part in shard.parts(shard.num_bytes // 3) for item in dataset.read_shard(part)]  # type: ignore[union-attr]
    assert lengths == [3, 4, 5, 6, 7, 8]


# --- Damage ---


def test_nothing_in_an_npz_is_unpickled(tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "64px", [recorded(0, 4), recorded(1, 4)])
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(marker), "w")

    path = max(folder.iterdir())
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "height": np.array([Bomb()] * 5, object)})
    good, bad = read(folder)
    assert isinstance(good, Episode) and isinstance(bad, Corrupt) and not marker.exists()
    assert pickle.dumps(Bomb())  # it would have run


def test_an_npz_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.vd4rl.rows._MOST_BYTES", 1000)
    folder = write_npz(tmp_path / "64px", [recorded(0, 4)])
    with pytest.raises(ValueError, match="at most 1000 are read"):
        open_vd4rl(str(folder))


@pytest.mark.parametrize("damage", ["cut", "rubbish", "no_action", "lengths"])
def test_a_damaged_npz_costs_its_episode_alone(tmp_path: Path, damage: str) -> None:
    folder = write_npz(tmp_path / "64px", [recorded(seed, 4) for seed in range(3)])
    path = sorted(folder.iterdir())[1]
    arrays = dict(np.load(path))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "rubbish":
        path.write_bytes(b"nothing")
    elif damage == "no_action":
        np.savez(path, **{name: values for name, values in arrays.items() if name != "action"})
    else:
        np.savez(path, **{**arrays, "reward": arrays["reward"][:-1]})
    first, damaged, last = read(folder)
    assert isinstance(first, Episode) and isinstance(last, Episode)
    assert isinstance(damaged, Corrupt) and path.name in damaged.reason


def test_an_episode_that_does_not_end_costs_itself_alone(tmp_path: Path) -> None:
    folder = write_hdf5(tmp_path / "84px", [[recorded(seed, 4) for seed in range(3)]])
    with h5py.File(next(folder.iterdir()), "r+") as data:
        data["step_type"][9] = 1  # the last row of the second
    first, damaged, last = read(folder)
    assert isinstance(first, Episode) and isinstance(last, Episode)
    assert isinstance(damaged, Corrupt) and "no whole episode" in damaged.reason


def test_a_damaged_chunk_of_hdf5_costs_its_episode_alone(tmp_path: Path) -> None:
    folder = tmp_path / "84px"
    written = [recorded(seed, 4) for seed in range(3)]
    write_hdf5(folder, [written])
    path = next(folder.iterdir())
    with h5py.File(path, "r+") as data:
        frames = np.asarray(data["observation"])
        del data["observation"]
        data.create_dataset("observation", data=frames, chunks=(5, *frames.shape[1:]), compression="gzip")
        place = data["observation"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 20] = bytes(20)
    path.write_bytes(content)
    first, damaged, last = read(folder)
    assert isinstance(first, Episode) and isinstance(last, Episode)
    assert isinstance(damaged, Corrupt) and "cannot be read as HDF5" in damaged.reason


def test_an_hdf5_file_that_is_cut_is_named(tmp_path: Path) -> None:
    folder = write_hdf5(tmp_path / "84px", [[recorded(0, 4)]])
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path.name} cannot be read as HDF5"):
        open_vd4rl(str(folder))


def test_both_layouts_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = write_hdf5(tmp_path / "px", [[recorded(0, 4)]])
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    (folder / "x.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="files of both layouts"):
        open_vd4rl(str(folder))
