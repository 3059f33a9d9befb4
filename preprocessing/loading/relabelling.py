"""Arm actions taken from the recorded state instead of the source's commands: what the arm then really did.

Octo trains on BridgeData V2 so (octo-models/octo 241fb35 `octo/data/utils/data_utils.py`; openvla/openvla c8f03f48
`prismatic/vla/datasets/rlds/utils/data_utils.py`, `relabel_bridge_actions`): translation and rotation of step t become
the state of step t + 1 minus that of step t, and the gripper stays. The last step of an episode, which Octo drops,
counts as terminal here and is not trained on. Unlike there, a turn past +-pi goes the short way round. It is chosen at
load time: the store keeps the commands, and the contract says which of the two a model was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from preprocessing.arm_state import arm_columns, displacements
from preprocessing.dataset_spec import GROUPS
from preprocessing.store.episode_store import EpisodeStore, fixed_lists
from preprocessing.store.parallel_reads import in_parallel
from preprocessing.store.statistics import Moments


@dataclass(frozen=True, kw_only=True, eq=False)
class RelabelledStore(EpisodeStore):
    """A store whose columns `action` and `is_terminal` read as relabelled; everything else is as it lies there."""

    @staticmethod
    def of(store: EpisodeStore) -> RelabelledStore:
        """`store` seen so. Raises ValueError if its proprioception lacks the pose of an arm that it moves."""
        if not store.contract.action.space().is_rt1:
            raise ValueError(
                f"{store.root} cannot be relabelled: its actions are {store.contract.action.name}, and only the arm of "
                f"RT-1's 11-D space is relabelled; leave {store.name} out of loader.relabel"
            )
        dataset, known = store.dataset, arm_columns(store)
        arm = [*_places("world_vector"), *_places("rotation_delta")]
        lacking = [store.contract.action.names[d] for d in arm if dataset.action_mask[d] and d not in known]
        if lacking or not known:
            raise ValueError(
                f"{store.root} cannot be relabelled: its proprioception holds no pose in m and rad that "
                f"{', '.join(lacking) or 'the arm'} changes; leave {dataset.name} out of loader.relabel"
            )
        return RelabelledStore(**{field.name: getattr(store, field.name) for field in fields(EpisodeStore)})

    def with_statistics(self) -> RelabelledStore:
        """The same with a contract that says so and has the statistics of what was reached: one pass over all steps.

        Raises ValueError if a state is not finite.
        """

        def of_shard(number: int) -> Moments:
            table = self.read_shard(number, ["action", "is_terminal"])
            action_NA = matrix(table, "action")[~table["is_terminal"].to_numpy()]
            if not np.isfinite(action_NA).all():
                raise ValueError(
                    f"{self.shards[number].path} holds a state that is not finite and cannot be relabelled: leave "
                    f"{self.dataset.name} out of loader.relabel"
                )
            return Moments.of(action_NA)

        moments = Moments.empty(self.contract.action.size)
        for its in in_parallel(of_shard, len(self.shards)):
            moments = moments.merged(its)
        dataset = replace(self.dataset, arm="reached", statistics=moments.statistics())
        return replace(self, contract=replace(self.contract, datasets=(dataset,)))

    def _read(self, shard: int, row_groups: range, columns: Sequence[str]) -> pa.Table:
        needed = ["proprio"] if "action" in columns else []
        table = super()._read(shard, row_groups, list(dict.fromkeys([*columns, *needed])))
        first = row_groups.start * self.shards[shard].row_group_rows
        rows_N = np.arange(first, first + table.num_rows)
        last_N = np.isin(rows_N + 1, np.cumsum(self.shards[shard].episode_lengths))
        if "action" in columns and len(rows_N):
            state_ND = matrix(table, "proprio")
            after_1D = state_ND[-1:] if last_N[-1] else self._first_state(shard, row_groups.stop)
            action_NA = self._reached(matrix(table, "action"), np.concatenate([state_ND, after_1D]), last_N)
            table = with_column(table, "action", fixed_lists(action_NA))
        if "is_terminal" in columns:
            table = with_column(table, "is_terminal", pa.array(table["is_terminal"].to_numpy() | last_N))
        return table.select(list(columns))

    def _first_state(self, shard: int, row_group: int) -> np.ndarray:
        """(1, P) of the first row of a row group."""
        return matrix(super()._read(shard, range(row_group, row_group + 1), ["proprio"]).slice(0, 1), "proprio")

    def _reached(self, action_NA: np.ndarray, state_PD: np.ndarray, last_N: np.ndarray) -> np.ndarray:
        """float32 (N, 11) from commands (N, 11) and the N + 1 states from before the first to after the last."""
        dimensions, sensed = list(self._columns), list(self._columns.values())
        angle_D = np.isin(dimensions, _places("rotation_delta"))
        moved = displacements(state_PD[:, sensed].astype(np.float64), angle_D)
        action = action_NA.copy()
        action[:, dimensions] = np.where(last_N[:, None], 0, moved)
        return action

    @cached_property
    def _columns(self) -> dict[int, int]:
        return arm_columns(self)


def _places(group: str) -> range:
    """The dimensions of a group of RT-1's space."""
    return range(GROUPS[group].start, GROUPS[group].stop)


def matrix(table: pa.Table, column: str) -> np.ndarray:
    """(N, width) of a column of fixed lists."""
    flat = table[column].combine_chunks().flatten().to_numpy()
    return flat.reshape(table.num_rows, table.schema.field(column).type.list_size)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)
