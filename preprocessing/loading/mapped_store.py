"""A store seen in a common action space, through the map that a mixture declares; the store keeps its own values.

Chosen at load time, as relabelling is, and kept in the model's contract (`rt_models.spec.OwnSide`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from preprocessing.action_parts import GROUPS
from preprocessing.conventions import held_openness
from preprocessing.loading.relabelling import matrix, with_column
from preprocessing.store.episode_store import EpisodeStore, fixed_lists
from preprocessing.store.parallel_reads import in_parallel
from preprocessing.store.statistics import Moments
from rt_models.action_space import ARM, ActionSpace, ActionSpec, DimensionMeaning
from rt_models.spec import (
    ActionStatistics,
    Contract,
    DatasetContract,
    MapArrays,
    MappedDimension,
    OwnSide,
    SpaceMap,
    read_map,
    require_meaningful,
    unscaled,
)

_TERMINATE = GROUPS["terminate_episode"].start
_UNKNOWN_UNITS = ("unitless", "unknown")


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedStore(EpisodeStore):
    """A store whose column `action` reads in a common space; everything else is as in `inner`."""

    inner: EpisodeStore
    own: OwnSide

    @staticmethod
    def declared(store: EpisodeStore, text: str, common: ActionSpace) -> MappedStore:
        """`store` seen through the map that `text` declares, with its statistics in the common space.

        Raises ValueError, naming the dataset, for a map that is not affine, has no inverse, or means nothing.
        """
        action = store.contract.action
        try:
            mapped = read_map(text, action, common)
            require_meaningful(mapped, action, store.dataset.meanings, common)
        except ValueError as error:
            raise ValueError(f"mixture.maps of {store.name}: {error}") from None
        return MappedStore.of(store, mapped, common.spec()).with_statistics()

    @staticmethod
    def of(store: EpisodeStore, mapped: SpaceMap, common: ActionSpec) -> MappedStore:
        """`store` seen through a map that has been looked at; of a held gripper its statistics are those of the
        commands (`with_statistics`)."""
        own = OwnSide(action=store.contract.action, dataset=store.dataset, map=mapped)
        contract = _common_contract(store.contract, own, common)
        known = {field.name: getattr(store, field.name) for field in fields(EpisodeStore)}
        return MappedStore(**{**known, "contract": contract, "inner": store, "own": own})

    def with_statistics(self) -> MappedStore:
        """The same with the statistics of what is read: where a gripper is held, one pass over all steps."""
        if not any(each.held for each in self.own.map):
            return self
        dataset = replace(self.dataset, statistics=self.measured())
        return replace(self, contract=replace(self.contract, datasets=(dataset,)))

    def measured(self) -> ActionStatistics:
        """Statistics of the mapped actions: one pass over all steps."""

        def of_shard(number: int) -> Moments:
            table = self.read_shard(number, ["action", "is_terminal"])
            return Moments.of(matrix(table, "action")[~table["is_terminal"].to_numpy()])

        moments = Moments.empty(self.contract.action.size)
        for its in in_parallel(of_shard, len(self.shards)):
            moments = moments.merged(its)
        return moments.statistics()

    def _read(self, shard: int, row_groups: range, columns: Sequence[str]) -> pa.Table:
        table = self.inner._read(shard, row_groups, columns)
        if "action" not in columns:
            return table
        own_NO = matrix(table, "action").astype(np.float64)
        first = row_groups.start * self.shards[shard].row_group_rows
        for place in self._held_places:
            own_NO[:, place] = self._held(shard, place)[first : first + table.num_rows]
        common_NA = self._arrays.forward(own_NO, _nothing(self.contract.action))
        return with_column(table, "action", fixed_lists(common_NA.astype(np.float32)))

    @cached_property
    def _arrays(self) -> MapArrays:
        return self.own.arrays(self.contract.action)

    @cached_property
    def _held_places(self) -> list[int]:
        return [self.own.action.names.index(each.own) for each in self.own.map if each.held]

    @cached_property
    def _held_of(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def _held(self, shard: int, place: int) -> np.ndarray:
        """float32 (N,) over a whole shard: +1 or -1, the direction last commanded, episode by episode."""
        if (shard, place) not in self._held_of:
            action_NO = matrix(self.inner.read_shard(shard, ["action"]), "action")
            episodes = np.split(action_NO[:, place], np.cumsum(self.shards[shard].episode_lengths)[:-1])
            self._held_of[shard, place] = np.concatenate([1 - 2 * held_openness(commands) for commands in episodes])
        return self._held_of[shard, place]


def _nothing(common: ActionSpec) -> np.ndarray:
    """float64 (A,): what stands in dimensions that a map says nothing of, as conversion writes them."""
    nothing_A = np.zeros(common.size)
    if common.space().is_rt1:
        nothing_A[_TERMINATE] = ARM
    return nothing_A


def _common_contract(contract: Contract, own: OwnSide, common: ActionSpec) -> Contract:
    """The store's contract in the common space."""
    arrays, dataset = own.arrays(common), own.dataset
    mask_A = np.zeros(common.size, bool)
    mask_A[arrays.common_M] = np.array(dataset.action_mask)[arrays.own_M]
    units = [dimension.unit for dimension in common.dimensions]
    meanings = [DimensionMeaning()] * common.size
    for each, own_place, place, scale in zip(own.map, arrays.own_M, arrays.common_M, arrays.scale_M, strict=True):
        unit = dataset.units[own_place]
        is_own = common.dimensions[place].bounded_by == "statistics" and scale == 1
        units[place] = unit if is_own or unit in _UNKNOWN_UNITS else units[place]
        meanings[place] = _seen(dataset.meanings[own_place], each) if dataset.meanings else DimensionMeaning()
    seen = DatasetContract(
        name=dataset.name,
        version=dataset.version,
        control_hz=dataset.control_hz,
        action_mask=tuple(mask_A.tolist()),
        units=tuple(units),
        statistics=_mapped_statistics(dataset.statistics, arrays, _nothing(common)),
        transform=unscaled(common.size),
        arm=dataset.arm,
        meanings=() if common.space().is_rt1 else tuple(meanings),
        own=own,
    )
    named = common.with_units(dict(zip(common.names, units, strict=True)))
    return replace(contract, action=named, datasets=(seen,))


def _seen(meaning: DimensionMeaning, each: MappedDimension) -> DimensionMeaning:
    """With its neutral value in the common space; a gripper that is held has none there."""
    if meaning.neutral is None:
        return meaning
    return replace(meaning, neutral=None if each.held else meaning.neutral * each.scale + each.offset)


def _mapped_statistics(found: ActionStatistics, arrays: MapArrays, nothing_A: np.ndarray) -> ActionStatistics:
    """Exact, since the map is affine: an axis that is turned round exchanges its ends."""

    def mapped(values: Sequence[float]) -> np.ndarray:
        return arrays.forward(np.asarray(values), nothing_A)

    ends = {
        names: np.sort([mapped(getattr(found, names[0])), mapped(getattr(found, names[1]))], axis=0)
        for names in (("minimum", "maximum"), ("q01", "q99"))
    }
    std_A = np.zeros(len(nothing_A))
    std_A[arrays.common_M] = np.asarray(found.std)[arrays.own_M] * np.abs(arrays.scale_M)
    rows = {name: row for names, pair in ends.items() for name, row in zip(names, pair, strict=True)}
    rows |= {"mean": mapped(found.mean), "std": std_A}
    return ActionStatistics(count=found.count, **{name: tuple(row.tolist()) for name, row in rows.items()})
