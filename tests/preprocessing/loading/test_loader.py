"""The loader over a real store, made from the shipped episodes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import Batch, Loader, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_into
from rt_models.spec import AffineTransform, check_batch

SAMPLE = Path(__file__).resolve().parents[3] / "examples/metaworld_sample/1.0.0"
STEPS = 4
DOUBLE = AffineTransform(name="double", scale=(2.0,) * 11, offset=(1.0,) * 11)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    config = ConvertConfig(split="val", encoder="hash", workers=0)
    return EpisodeStore.open(convert(str(SAMPLE), str(tmp_path_factory.mktemp("store")), config).store)


@pytest.fixture(scope="module")
def reader(store: EpisodeStore) -> Iterator[WindowReader]:
    with closing(WindowReader([store], [DOUBLE], num_steps=STEPS, config=LoaderConfig())) as reader:
        yield reader


def batches(reader: WindowReader, count: int, **settings: int) -> list[tuple[Batch, int]]:
    """The first `count` batches with the position after each."""
    defaults = {"seed": 3, "lanes": 6, "global_batch": 12, "micro_batch": 4}
    loader = Loader(reader, **(defaults | settings))  # type: ignore[arg-type]
    with closing(iter(loader)) as stream:  # type: ignore[type-var]
        return [(batch, loader.state()["sample"]) for batch in itertools.islice(stream, count)]


def windows(batch: Batch) -> list[tuple[int, int, int]]:
    """(sample id, episode, step) of each window."""
    return list(zip(*(batch[key].tolist() for key in ("sample_id", "episode", "step")), strict=True))


def test_every_batch_keeps_the_contract(reader: WindowReader) -> None:
    for batch, _ in batches(reader, 10):
        check_batch(batch, action_size=11)


def test_a_window_holds_what_the_rows_of_the_store_hold(reader: WindowReader, store: EpisodeStore) -> None:
    table = store.read_rows(0, 0, ["image", "action", "instruction", "episode", "step", "is_terminal"])
    batch = reader.read(np.arange(table.num_rows), np.arange(table.num_rows))
    rows = table.to_pylist()
    for end in range(table.num_rows):
        assert (batch["episode"][end], batch["step"][end]) == (rows[end]["episode"], rows[end]["step"])
        for t in range(STEPS):
            row, frame = end - STEPS + 1 + t, int(batch["frame_index"][end, t])
            real = row >= 0 and rows[row]["episode"] == rows[end]["episode"]
            assert bool(batch["step_mask"][end, t]) == real
            if not real:
                continue
            decoded = simplejpeg.decode_jpeg(rows[row]["image"], fastdct=False, fastupsample=False)
            assert (batch["frames"][frame].numpy() == decoded).all()
            np.testing.assert_allclose(batch["action"][end, t], np.array(rows[row]["action"]) * 2 + 1, rtol=1e-6)
            place = list(store.instruction_ids).index(rows[row]["instruction"])
            assert (batch["embedding"][end, t].numpy() == store.embeddings[place]).all()
            assert bool(batch["loss_mask"][end, t]) == (not rows[row]["is_terminal"])


@pytest.mark.parametrize("segment_windows", [1, 2, 4])
def test_an_epoch_hands_out_every_window_once(reader: WindowReader, segment_windows: int) -> None:
    total = reader.index.num_rows
    epoch = -(-total // segment_windows) * segment_windows
    found = [w for b, _ in batches(reader, -(-epoch // 4), segment_windows=segment_windows) for w in windows(b)]
    ends = [(episode, step) for sample, episode, step in found if sample < epoch and step >= 0]
    assert len(ends) == len(set(ends)) == total


@settings(max_examples=15, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3]),
    stop=st.integers(1, 6),
    then=st.sampled_from([1, 2, 3]),
    segment_windows=st.sampled_from([1, 2]),
)
def test_a_run_continued_on_other_workers_is_the_same_run(
    reader: WindowReader, world: int, stop: int, then: int, segment_windows: int
) -> None:
    def run(workers: int, position: int, steps: int) -> list[list[tuple[int, int, int]]]:
        """The windows of each global batch, in order of sample id."""
        pieces = [
            batches(
                reader,
                steps * 12 // workers // 2,
                micro_batch=2,
                rank=rank,
                world_size=workers,
                position=position,
                segment_windows=segment_windows,
            )
            for rank in range(workers)
        ]
        per_step = 12 // workers // 2
        return [
            sorted(
                w
                for rank in pieces
                for batch, _ in rank[step * per_step : (step + 1) * per_step]
                for w in windows(batch)
            )
            for step in range(steps)
        ]

    undisturbed = run(1, 0, 8)
    assert run(world, 0, stop) + run(then, stop * 12, 8 - stop) == undisturbed


def test_the_position_moves_when_a_global_batch_is_complete(reader: WindowReader) -> None:
    assert [position for _, position in batches(reader, 6)] == [0, 0, 12, 12, 12, 24]


def test_windows_of_a_segment_share_frames_and_crop(reader: WindowReader) -> None:
    (batch, _), *_ = batches(reader, 1, segment_windows=4)
    assert len(set(batch["crop_key"].tolist())) == 1
    assert len(batch["frames"]) < int(batch["step_mask"].sum())


def test_an_epoch_decodes_each_frame_about_once_and_reads_each_row_group_about_once(store: EpisodeStore) -> None:
    with closing(WindowReader([store], [DOUBLE], num_steps=STEPS, config=LoaderConfig())) as reader:
        rows = reader.index.num_rows
        batches(reader, 3 * rows // 4)
        assert reader.decodes == rows
        assert reader.fetches == len(reader.block_starts)


def test_with_hardly_any_memory_batches_are_the_same_and_the_budget_holds(
    reader: WindowReader, store: EpisodeStore
) -> None:
    config = LoaderConfig(memory_mb=1, decode_threads=1)
    with closing(WindowReader([store], [DOUBLE], num_steps=STEPS, config=config)) as small:
        for (ours, _), (theirs, _) in zip(batches(small, 40), batches(reader, 40), strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert small._kept.cache.currsize <= 0.5 * 2**20
        assert small.decoded_bytes <= 0.5 * 2**20 and small.decodes > reader.index.num_rows // 2


@pytest.mark.parametrize("frames", ["windows", "pool"])
def test_frames_are_the_same_however_they_are_handed_out(
    reader: WindowReader, store: EpisodeStore, frames: Literal["windows", "pool"]
) -> None:
    config = LoaderConfig(frames=frames)
    with closing(WindowReader([store], [DOUBLE], num_steps=STEPS, config=config)) as other:
        loader = Loader(other, seed=3, lanes=6, global_batch=12, micro_batch=4)
        with closing(iter(loader)) as stream:  # type: ignore[type-var]
            for ours, (theirs, _) in zip(itertools.islice(stream, 90), batches(reader, 90), strict=True):
                check_batch(ours, action_size=11)
                real = theirs["step_mask"]
                assert torch.equal(
                    ours["frames"][ours["frame_index"][real]], theirs["frames"][theirs["frame_index"][real]]
                )
                assert all(torch.equal(ours[k], theirs[k]) for k in theirs if not k.startswith("frame"))
                if frames == "windows":
                    assert len(ours["frames"]) == int(real.sum())


def test_batches_that_are_kept_are_not_written_over(reader: WindowReader) -> None:
    kept = batches(reader, 12)
    copies = [batch["frames"].clone() for batch, _ in kept]
    for _ in range(3):
        batches(reader, 12, seed=9)
    assert all(torch.equal(batch["frames"], copy) for (batch, _), copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize("mode", ["cached", "synthetic"])
def test_modes_that_do_not_read_go_through_the_same_positions(
    store: EpisodeStore, mode: Literal["cached", "synthetic"]
) -> None:
    config = LoaderConfig(mode=mode)
    with closing(WindowReader([store], [DOUBLE], num_steps=STEPS, config=config)) as other:
        found = batches(other, 40)
        assert [position for _, position in found[:6]] == [0, 0, 12, 12, 12, 24]
        assert other.fetches <= 2 * len(other.block_starts) and other.decodes <= 4 * 4 * STEPS
        for batch, _ in found:
            check_batch(batch, action_size=11)


def test_an_error_in_the_background_reaches_the_training(store: EpisodeStore, tmp_path: Path) -> None:
    broken = EpisodeStore.open(store.root)
    with closing(WindowReader([broken], [DOUBLE], num_steps=STEPS, config=LoaderConfig())) as reader:
        object.__setattr__(broken, "read_rows", lambda *_: (_ for _ in ()).throw(OSError("the disk is gone")))
        with pytest.raises(OSError, match="the disk is gone"):
            batches(reader, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world_size": 4, "global_batch": 16}, "4 workers cannot share 6 lanes evenly"),
        ({"global_batch": 10}, "global batch 10 must be a multiple of micro-batch 4 x 1 workers"),
        ({"segment_windows": 3}, "the micro-batch of 3 windows a segment"),
        ({"segment_windows": 0}, "segment_windows must be at least 1, got 0"),
        ({"global_batch": 0}, "global_batch must be at least 1, got 0"),
        ({"lanes": 0}, "lanes must be at least 1, got 0"),
        ({"position": -24}, "position must be at least 0, got -24"),
        ({"rank": 1}, "rank 1 is out of range for 1 workers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(reader: WindowReader, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(reader, 1, **settings)


def test_an_unknown_flag_is_refused(store: EpisodeStore) -> None:
    with pytest.raises(ValueError, match="has no step flag 'nonsense'"):
        WindowReader([store], [DOUBLE], num_steps=STEPS, config=LoaderConfig(mask_flags=("nonsense",)))


def test_a_frame_that_cannot_be_decoded_or_has_another_size_is_named(
    store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(encoded: bytes, image_HWC: np.ndarray) -> tuple[int, int]:
        raise ValueError("no JPEG")

    for decode, message in (
        (broken, r"cannot be decoded \(no JPEG\)"),
        (lambda *_: (5, 7), "is 5x7, its manifest says"),
    ):
        monkeypatch.setattr("preprocessing.loading.frame_reader.decode_into", decode)
        with (
            closing(WindowReader([store], [DOUBLE], num_steps=STEPS, config=LoaderConfig())) as reader,
            pytest.raises(ValueError, match=rf"the frame at step \d+ of episode \d+ of .*shard-.*parquet {message}"),
        ):
            batches(reader, 1)


def test_a_damaged_frame_is_found_where_its_error_says(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, episode, step = len(store.shards) - 1, len(store.shards[-1].episode_lengths) - 1, 2
    damaged = store.read_episode(shard, episode, ["image"])["image"][step].as_py()

    def decode(encoded: bytes, image_HWC: np.ndarray) -> tuple[int, int]:
        return decode_into(encoded[:100] if encoded == damaged else encoded, image_HWC)

    monkeypatch.setattr("preprocessing.loading.frame_reader.decode_into", decode)
    named = rf"the frame at step {step} of episode {episode} of {re.escape(store.shards[shard].path)} cannot be decoded"
    with (
        closing(WindowReader([store], [DOUBLE], num_steps=STEPS, config=LoaderConfig())) as reader,
        pytest.raises(ValueError, match=rf"{named} .*: delete the store and preprocess again"),
    ):
        reader.read(np.arange(reader.index.num_rows), np.arange(reader.index.num_rows))


def test_the_pool_is_not_for_a_gpu(store: EpisodeStore) -> None:
    reader = WindowReader([store], [DOUBLE], num_steps=STEPS, config=LoaderConfig(frames="pool"))
    with pytest.raises(ValueError, match="would be copied to the GPU whole"):
        Loader(reader, seed=0, lanes=6, global_batch=6, micro_batch=6, pin_memory=True)
