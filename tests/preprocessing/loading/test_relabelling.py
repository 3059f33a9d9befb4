"""Actions relabelled from the state: hand-computed rows, and the same rows however they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import LoaderConfig, WindowReader
from preprocessing.loading.relabelling import RelabelledStore
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import AffineTransform, Contract
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset

SAME = AffineTransform(name="same", scale=(1.0,) * 11, offset=(0.0,) * 11)
STATES = [
    [0.1, 0.2, 0.3, 0.0, -0.5, 3.0, 1.0],
    [0.15, 0.2, 0.1, 0.25, -0.5, -3.0, 0.0],
    [0.15, 0.5, 0.1, 0.25, -1.0, -2.5, 0.0],
]
COMMANDS = [[0, 0, 0, 0, 0, 0, 1], [9, 9, 9, 1, 1, 1, 0], [9, 9, 9, 1, 1, 1, 1]]
# By hand: state differences; the yaw goes from 3.0 to -3.0 the short way round, 2 pi - 6. Gripper 1 = open becomes -1.
REACHED = [
    [1, 0.05, 0, -0.2, 0.25, 0, 2 * np.pi - 6, -1, 0, 0, 0],
    [1, 0, 0.3, 0, 0, -0.5, 0.5, 1, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0],  # nothing is known after it, and it is not trained on
]


def written(tmp_path: Path, *episodes: dict[str, Any]) -> EpisodeStore:
    source = write_dataset(tmp_path / "source", "bridge_dataset", bridge_features(), [episodes])
    return EpisodeStore.open(convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0)).store)


def by_hand() -> dict[str, Any]:
    episode = bridge_episode(np.random.default_rng(0), 3)
    for step, state, command in zip(episode["steps"], STATES, COMMANDS, strict=True):
        step["observation"]["state"] = np.array(state, np.float32)
        step["action"], step["is_terminal"] = np.array(command, np.float32), False
    return episode


def matrix(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist(), np.float64)


def test_rows_by_hand(tmp_path: Path) -> None:
    store = written(tmp_path, by_hand())
    seen = RelabelledStore.of(store).with_statistics()
    table = seen.read_rows(0, 0, ["is_terminal", "action", "flags"])
    assert table.column_names == ["is_terminal", "action", "flags"]
    np.testing.assert_allclose(matrix(table, "action"), REACHED, atol=1e-6)
    assert table["is_terminal"].to_pylist() == [False, False, True]
    assert table["flags"].to_pylist() == [1, 0, 0]
    np.testing.assert_allclose(matrix(store.read_rows(0, 0, ["source/action"]), "source/action"), COMMANDS)
    statistics = seen.contract.datasets[0].statistics
    assert statistics.count == 2
    np.testing.assert_allclose(statistics.mean, np.mean(REACHED[:2], axis=0), atol=1e-6)


def test_the_contract_says_which_and_an_older_one_keeps_its_id(tmp_path: Path) -> None:
    store = written(tmp_path, by_hand())
    seen = RelabelledStore.of(store).with_statistics().contract
    assert (store.dataset.arm, seen.datasets[0].arm) == ("commanded", "reached")
    assert Contract.from_json(json.loads(json.dumps(seen.to_json()))) == seen
    assert seen.id != store.contract.id == store.manifest.contract_id
    assert "arm" not in store.manifest.contract.to_json()["datasets"][0]


@pytest.mark.parametrize("lengths", [[2, 130, 1, 300], [128, 128], [1], [257, 3]])
def test_rows_are_the_same_however_they_are_read(
    make_bridge: Callable[..., Path], tmp_path: Path, lengths: list[int]
) -> None:
    source = make_bridge(lengths)
    store = EpisodeStore.open(convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0)).store)
    seen, columns = RelabelledStore.of(store), ["action", "is_terminal"]
    state = matrix(store.read_shard(0, ["proprio"]), "proprio")
    last = np.isin(np.arange(len(state)) + 1, np.cumsum(lengths))
    expected = matrix(store.read_shard(0, ["action"]), "action")
    moved = np.diff(np.concatenate([state, state[-1:]])[:, :6], axis=0)
    moved[:, 3:] = np.angle(np.exp(1j * moved[:, 3:]))
    expected[:, 1:7] = np.where(last[:, None], 0, moved)
    groups = [seen.read_rows(0, group, columns) for group in range(-(-len(state) // 128))]
    episodes = [seen.read_episode(0, episode, columns) for episode in range(len(lengths))]
    for tables in (groups, episodes, [seen.read_shard(0, columns)]):
        table = pa.concat_tables(tables)
        np.testing.assert_allclose(matrix(table, "action"), expected, atol=1e-5)
        assert np.array_equal(table["is_terminal"].to_numpy(), last)


def test_windows_end_before_the_last_step(tmp_path: Path) -> None:
    store = written(tmp_path, by_hand())
    config = LoaderConfig(mask_flags=("first_zero_action",))
    reader = WindowReader([RelabelledStore.of(store)], [SAME], num_steps=3, config=config)
    batch = reader.read(np.arange(3), np.arange(3))
    assert batch["loss_mask"][2].tolist() == [False, True, False]
    np.testing.assert_allclose(batch["action"][2].numpy(), REACHED, atol=1e-6)


def test_a_store_without_the_pose_is_refused(tmp_path: Path) -> None:
    store = written(tmp_path, by_hand())
    proprio = store.manifest.proprio
    renamed = replace(proprio, names=(*proprio.names[:5], "state/heading", *proprio.names[6:]))
    store = replace(store, manifest=replace(store.manifest, proprio=renamed))
    with pytest.raises(
        ValueError, match=r"no pose in m and rad that rotation_delta_z changes; leave bridge_dataset out"
    ):
        RelabelledStore.of(store)


def test_a_state_that_is_not_finite_is_named(tmp_path: Path) -> None:
    episode = by_hand()
    episode["steps"][1]["observation"]["state"] = np.full(7, np.nan, np.float32)
    with pytest.raises(ValueError, match=r"shard-00000-of-00001.parquet holds a state that is not finite"):
        RelabelledStore.of(written(tmp_path, episode)).with_statistics()
