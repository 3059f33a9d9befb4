"""A store seen in a common space: its values, statistics and masks, and the gripper that needs the episode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation.scoring import _error_scale
from preprocessing.conventions import held_openness
from preprocessing.loading.mapped_store import MappedStore
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_space import RT1_SPACE, SPACES
from rt_models.spec import Contract, Quantiles
from tests.support.own_robots import ELEVEN, INTO_RT1, JOINTS, SEVEN, TWO_ARMS, make_store


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return make_store(SEVEN, tmp_path_factory.mktemp("seven"))


def actions(store: EpisodeStore) -> np.ndarray:
    tables = [store.read_shard(shard, ["action"])["action"] for shard in range(len(store.shards))]
    return np.concatenate([np.array(table.to_pylist(), np.float32) for table in tables])


def test_values_and_statistics_are_those_of_the_common_space(seven: EpisodeStore) -> None:
    seen = MappedStore.declared(seven, INTO_RT1, RT1_SPACE)
    own_NO, common_NA = actions(seven), actions(seen)
    assert common_NA.dtype == np.float32
    np.testing.assert_array_equal(common_NA[:, 1:7], own_NO[:, :6])
    np.testing.assert_array_equal(common_NA[:, 7], -own_NO[:, 6])
    assert (common_NA[:, 0] == 1).all() and (common_NA[:, 8:] == 0).all()
    assert seen.dataset.action_mask == (False, *(True,) * 7, *(False,) * 3)
    found, measured = seen.dataset.statistics, seen.measured()
    for name in ("mean", "std", "minimum", "maximum", "q01", "q99"):
        np.testing.assert_allclose(getattr(found, name), getattr(measured, name), rtol=2e-3, atol=1e-4, err_msg=name)


def test_row_groups_and_episodes_read_alike(seven: EpisodeStore) -> None:
    seen = MappedStore.declared(seven, INTO_RT1, RT1_SPACE)
    whole = np.array(seen.read_shard(0, ["action"])["action"].to_pylist())
    np.testing.assert_array_equal(
        np.array(seen.read_episode(0, 1, ["step", "action"])["action"].to_pylist()), whole[20:40]
    )
    assert seen.read_rows(0, 0, ["is_first"]).column_names == ["is_first"]


def test_a_relative_gripper_is_held(tmp_path: Path) -> None:
    store = make_store(ELEVEN, tmp_path)
    text = "position_delta = world_vector; gripper_open = -0.5 * held(gripper_closedness_action) + 0.5"
    seen = MappedStore.declared(store, text, SPACES["end-effector-7d"])
    commands, opened = actions(store)[:, 7], actions(seen)[:, 6]
    episodes = np.split(commands, range(20, len(commands), 20))
    np.testing.assert_array_equal(opened, np.concatenate([held_openness(each) for each in episodes]))
    assert set(seen.dataset.statistics.minimum[6:]) | set(seen.dataset.statistics.maximum[6:]) <= {0.0, 1.0}


def test_the_contract_goes_to_json_and_back_with_the_map(seven: EpisodeStore) -> None:
    contract = MappedStore.declared(seven, INTO_RT1, RT1_SPACE).contract
    trained = contract.trained_with(RT1_SPACE.spec(), Quantiles())
    again = Contract.from_json(trained.to_json())
    assert again == trained and again.id == trained.id
    trained.require_readable(seven.contract, where="there")


def test_a_mistake_names_the_dataset(tmp_path: Path) -> None:
    store = make_store(JOINTS, tmp_path)
    with pytest.raises(
        ValueError, match=r"mixture\.maps of seven_joints: joint_0 cannot be mapped onto world_vector_x"
    ):
        MappedStore.declared(store, "world_vector_x = joint_0", RT1_SPACE)


def test_neutral_values_are_those_of_the_common_space(tmp_path: Path) -> None:
    store = make_store(TWO_ARMS, tmp_path)
    seen = MappedStore.declared(store, "gripper_closed = -left_gripper_open + 1", SPACES["joint-velocity-8d"])
    own, common = store.dataset.meanings[6].neutral, seen.dataset.meanings[7].neutral
    assert own is not None and common == pytest.approx(1 - own)
    assert common == pytest.approx(seen.dataset.statistics.mean[7])


def test_errors_of_a_held_gripper_are_measured_against_the_range_that_it_is_held_in(tmp_path: Path) -> None:
    gripper = {"path": "action", "first": 6, "scale": -6, "unit": "closedness"}  # commands of +-0.3 at most
    robot = replace(ELEVEN, parts=ELEVEN.parts | {"gripper_closedness_action": gripper})
    store = make_store(robot, tmp_path)
    text = "position_delta = world_vector; gripper_open = -0.5 * held(gripper_closedness_action) + 0.5"
    seen = MappedStore.declared(store, text, SPACES["end-effector-7d"])
    scale = _error_scale(store, seen.contract)
    assert set(actions(seen)[:, 6].tolist()) == {0.0, 1.0}
    assert scale.ranges_D[list(scale.dims).index(6)] == 1.0
