"""A state that stands still, whatever part of a shard is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from preprocessing.loading.frozen_state import FrozenStateStore
from tests.support import two_cameras


def test_the_state_is_that_of_the_episode_s_first_step_and_nothing_else_changes(tmp_path: Path) -> None:
    store = two_cameras.store(tmp_path, shards=((150, 3), (20,)))  # the first episode fills more than a row group
    frozen = FrozenStateStore.of(store)
    columns = ["proprio", "action", "image"]
    for shard, starts in ((0, [0] * 150 + [150] * 3), (1, [0] * 20)):
        recorded, held = store.read_shard(shard, columns), frozen.read_shard(shard, columns)
        state_NP = np.stack(recorded["proprio"].to_pylist())
        np.testing.assert_array_equal(np.stack(held["proprio"].to_pylist()), state_NP[starts])
        assert held.drop_columns("proprio").equals(recorded.drop_columns("proprio"))
    late = frozen.read_rows(0, 1, ["proprio"])["proprio"].to_pylist()
    assert late[0] == store.read_rows(0, 0, ["proprio"])["proprio"].to_pylist()[0] and len(late) == 25
    assert frozen.read_rows(0, 0, ["action"]).equals(store.read_rows(0, 0, ["action"]))
