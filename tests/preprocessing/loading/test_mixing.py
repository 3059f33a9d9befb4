"""The loader's order over several stores, with a reader that hands back what it was asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.loading.loader import Batch, Loader, LoaderConfig, Reader
from preprocessing.loading.shuffle_score import shuffle_score

GLOBAL_BATCH = 48


class Rows(Reader):
    """A reader without data: a batch is the rows asked for."""

    def __init__(self, store_rows: Sequence[int]) -> None:
        self.config, self.store_rows = LoaderConfig(), store_rows
        self._first = np.cumsum([0, *store_rows])

    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray | None = None) -> Batch:
        store = np.searchsorted(self._first, np.maximum(rows, 0), side="right") - 1
        inside = np.where(rows >= 0, rows - self._first[store], -1)
        columns = {
            "sample_id": sample_ids,
            "store": store,
            "row": inside,
            "crop_key": crop_keys,
            "episode": inside // 10,
        }
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in columns.items()}

    def close(self) -> None: ...


class Lengths(Rows):
    """Samples whose length is their row number."""

    def cost(self, rows: np.ndarray) -> np.ndarray:
        return rows


def drawn(rows: Sequence[int], weights: Sequence[float] | None, steps: int, **settings: int) -> list[list[tuple]]:
    """(sample id, store, row) of each global batch, by sample id, over all ranks."""
    world = settings.pop("world", 1)
    found: list[list[tuple]] = [[] for _ in range(steps)]
    for rank in range(world):
        for step, batch in rank_batches(Rows(rows), weights, steps, rank=rank, world_size=world, **settings):
            found[step] += zip(*(batch[key].tolist() for key in ("sample_id", "store", "row")), strict=True)
    return [sorted(step) for step in found]


def rank_batches(
    reader: Rows, weights: Sequence[float] | None, steps: int, **settings: int
) -> Iterator[tuple[int, Batch]]:
    settings = {"seed": 1, "lanes": 48, "global_batch": GLOBAL_BATCH, "micro_batch": 6} | settings
    loader = Loader(reader, weights=weights, **settings)  # type: ignore[arg-type]
    pieces = GLOBAL_BATCH // settings.get("world_size", 1) // settings["micro_batch"]
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        for number, batch in enumerate(itertools.islice(batches, steps * pieces)):
            yield number // pieces, batch


STORES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(stores=STORES, world=st.sampled_from([1, 2, 3, 8]), stop=st.integers(0, 3), then=st.sampled_from([1, 3, 8]))
def test_any_ranks_continued_on_any_others_draw_one_sequence(
    stores: list[tuple[int, int]], world: int, stop: int, then: int
) -> None:
    rows, weights = zip(*stores, strict=True)
    before = drawn(rows, weights, stop, world=world, micro_batch=2)
    after = drawn(rows, weights, 4 - stop, world=then, micro_batch=2, position=stop * GLOBAL_BATCH)
    assert before + after == drawn(rows, weights, 4)


@settings(max_examples=25, deadline=None)
@given(stores=STORES, segment=st.sampled_from([1, 2, 3]))
def test_shares_hold_at_every_prefix_and_each_store_runs_through_epochs(
    stores: list[tuple[int, int]], segment: int
) -> None:
    rows, weights = zip(*stores, strict=True)
    samples = sorted(sample for step in drawn(rows, weights, 12, segment_windows=segment) for sample in step)
    ids, store, row = (np.array(column) for column in zip(*samples, strict=True))
    assert (ids == np.arange(len(ids))).all()
    segments = store[::segment]
    counts = np.cumsum(segments[:, None] == np.arange(len(rows)), axis=0)
    asked = np.arange(1, len(segments) + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - asked).max() < 1
    for number, size in enumerate(rows):
        if segment == 1:  # the last segment of an epoch may be padded, and stands for the store before
            own = row[store == number]
            for first in range(0, len(own) - size + 1, size):
                assert sorted(own[first : first + size]) == list(range(size))


def test_a_store_with_a_block_for_each_lane_keeps_the_ranks_reads_apart() -> None:
    rows, world = 48 * 128 * 3, 4
    seen = [set[int](), set[int](), set[int](), set[int]()]
    for rank in range(world):
        for _, batch in rank_batches(Rows([rows, 10]), [3, 1], 120, rank=rank, world_size=world):
            seen[rank] |= set((batch["row"][batch["store"] == 0] // 128).tolist())
    assert max(len(a & b) for a, b in itertools.combinations(seen, 2)) == 0
    assert min(map(len, seen)) >= 12


def test_samples_of_one_length_share_a_micro_batch() -> None:
    plain = drawn([1000], [1], 3)
    found: list[list[tuple]] = [[], [], []]
    for step, batch in rank_batches(Lengths([1000]), [1], 3):
        assert np.ptp(batch["row"].numpy()) < 500
        found[step] += zip(*(batch[key].tolist() for key in ("sample_id", "store", "row")), strict=True)
    assert [sorted(step) for step in found] == plain


def test_the_report_counts_shares_epochs_and_distances() -> None:
    reader = Rows([4000, 200])
    loader = Loader(reader, seed=0, lanes=48, global_batch=48, micro_batch=48, weights=[3, 1])
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        list(itertools.islice(batches, 50))
    report = loader.report()
    assert report["samples"] == 2400 and report["share/0"] == 0.75 and report["epochs/1"] == 3.0
    assert report["shuffle_score"] > 0.3


def test_the_shuffle_score_tells_order_from_chance() -> None:
    episodes = np.arange(4000)[:, None] // 20
    assert shuffle_score(episodes) < 0.01  # type: ignore[operator]
    assert shuffle_score(np.random.default_rng(1).permutation(episodes)) == pytest.approx(1, abs=0.1)
    assert shuffle_score(np.arange(5)[:, None]) is None


def test_weights_must_be_one_per_store() -> None:
    with pytest.raises(ValueError, match="2 weights for 3 stores"):
        Loader(Rows([1, 1, 1]), seed=0, lanes=48, global_batch=48, micro_batch=48, weights=[1, 1])
