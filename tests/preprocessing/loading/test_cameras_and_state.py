"""Windows of several cameras and of the robot's state, from stores that have them and from stores that do not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from preprocessing.loading.fixed_shapes import is_sized
from preprocessing.loading.loader import Batch, Loader, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore, image_column
from preprocessing.store.images import decode_image
from preprocessing.store.robot_inputs import own_camera, store_inputs
from rt_models.spec import StateColumns, check_batch, frames_key, index_key, merge_contracts, union_of_states
from rt_models.vision.image_inputs import _frame_keys
from tests.support import two_cameras

STEPS = 3
BOTH = ("image", "wrist")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EpisodeStore]:
    """A store with hand camera and state, one with neither, and one whose two cameras have one size."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        "full": two_cameras.store(folder / "a"),
        "bare": two_cameras.store(folder / "b", name="bare", hand=None, state=False, shards=((7,),)),
        "equal": two_cameras.store(folder / "c", name="equal", hand_size=(16, 24)),
    }


def reader(stores: Sequence[EpisodeStore], cameras: Sequence[str] = BOTH, **settings: Any) -> WindowReader:
    inputs = [store_inputs(store, cameras=cameras, state=True) for store in stores]
    sides = {store.name: each.state for store, each in zip(stores, inputs, strict=True)}
    state = StateColumns(names=union_of_states(sides, ()), sides=tuple(sides.values())) if any(sides.values()) else None
    return WindowReader(
        stores,
        [store.dataset.transform for store in stores],
        num_steps=STEPS,
        config=settings.pop("config", LoaderConfig()),
        cameras=cameras,
        recipes={recipe.camera: recipe for each in inputs for recipe in each.cameras},
        state=state,
        **settings,
    )


def read_all(own: WindowReader) -> Batch:
    rows = np.arange(own.index.num_rows)
    return own.read(rows, rows)


def rows_of(store: EpisodeStore, columns: list[str]) -> list[dict[str, Any]]:
    return [row for n in range(len(store.shards)) for row in store.read_shard(n, columns).to_pylist()]


@pytest.mark.parametrize("names", [("full",), ("equal",), ("full", "bare")])
@pytest.mark.parametrize("frames", ["distinct", "windows", "pool"])
def test_a_window_holds_what_each_camera_saw_and_what_the_state_was(
    stores: dict[str, EpisodeStore], names: tuple[str, ...], frames: Literal["distinct", "windows", "pool"]
) -> None:
    mixed = [stores[name] for name in names]
    with closing(reader(mixed, config=LoaderConfig(frames=frames))) as own:
        batch = read_all(own)
        check_batch(batch, action_size=11, cameras=BOTH, state_size=4)
        assert own.decodes == sum(s.num_steps * len(s.manifest.cameras) for s in mixed)
        row = 0
        for store in mixed:
            columns = [image_column(own) for own in store.manifest.cameras]
            state = ["proprio"] if store.manifest.proprio.names else []
            side = store_inputs(store, cameras=(), state=True).state
            for step in rows_of(store, [*columns, *state, "episode"]):
                assert bool(batch["step_mask"][row, -1])
                for role in BOTH:
                    name, index = own_camera(store, role), int(batch[index_key(role)][row, -1])
                    assert (index >= 0) == (name is not None)
                    if name is not None:
                        seen = batch[frames_key(role)][index].numpy()
                        assert (seen == decode_image(step[image_column(name)])).all(), role
                known = np.zeros(4) if side is None else side.normalised(np.array(step.get("proprio")))
                np.testing.assert_array_equal(batch["state"][row, -1], known.astype(np.float32))
                assert batch["state_mask"][row].tolist() == [side is not None] * 4
                row += 1


@pytest.mark.parametrize("frames", ["distinct", "windows"])
def test_a_window_of_each_second_step_is_every_second_step_of_a_longer_one(
    stores: dict[str, EpisodeStore], frames: Literal["distinct", "windows"]
) -> None:
    full, rows = stores["full"], np.arange(19)
    settings = {"config": LoaderConfig(frames=frames)}
    wide, strided = (
        WindowReader([full], [full.dataset.transform], num_steps=steps, stride=stride, **settings)
        for steps, stride in ((5, 1), (3, 2))
    )
    long, short = wide.read(rows, rows), strided.read(rows, rows)
    check_batch(short, action_size=11)
    for key in ("step_mask", "loss_mask", "action", "embedding"):
        assert torch.equal(short[key], long[key][:, ::2]), key
    real_BT = short["step_mask"]
    pixels = [
        batch["frames"][index[real_BT]]
        for batch, index in ((short, short["frame_index"]), (long, long["frame_index"][:, ::2]))
    ]
    assert torch.equal(*pixels)
    assert torch.equal(_frame_keys(short, 2)[real_BT], _frame_keys(long, 1)[:, ::2][real_BT])
    for segment in (1, 4):
        ends = np.arange(0, 16, segment)[:, None] + np.arange(segment)
        sizes = [strided.size(each, each // segment, crops=True) for each in ends.reshape(-1, 4)]
        assert max(sizes) <= strided.largest_size(4, segment)
    wide.close()
    strided.close()


def test_only_the_cameras_that_are_read_are_fetched_and_decoded(
    stores: dict[str, EpisodeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    read = EpisodeStore._read
    monkeypatch.setattr(
        EpisodeStore, "_read", lambda s, n, g, columns: fetched.extend(columns) or read(s, n, g, columns)
    )
    for cameras, there in ((("image",), {"image"}), (("wrist",), {"image_hand"}), (BOTH, {"image", "image_hand"})):
        fetched.clear()
        with closing(reader([stores["full"]], cameras)) as own:
            batch = read_all(own)
            check_batch(batch, action_size=11, cameras=cameras, state_size=4)
            assert own.decodes == 19 * len(cameras)
        assert {column for column in fetched if column.startswith("image")} == there
    fetched.clear()
    full = stores["full"]
    with closing(WindowReader([full], [full.dataset.transform], num_steps=STEPS, config=LoaderConfig())) as plain:
        check_batch(read_all(plain), action_size=11)
    assert "proprio" not in fetched and "image_hand" not in fetched


def test_the_main_camera_s_batches_do_not_depend_on_what_else_is_read(stores: dict[str, EpisodeStore]) -> None:
    full = stores["full"]
    with (
        closing(WindowReader([full], [full.dataset.transform], num_steps=STEPS, config=LoaderConfig())) as plain,
        closing(reader([full])) as both,
    ):
        alone, beside = read_all(plain), read_all(both)
        assert all(torch.equal(alone[key], beside[key]) for key in alone)


@pytest.mark.parametrize("names", [("full", "bare"), ("equal",)])
def test_one_small_budget_holds_for_all_cameras_and_changes_nothing(
    stores: dict[str, EpisodeStore], names: tuple[str, ...]
) -> None:
    mixed = [stores[name] for name in names]
    small = replace(LoaderConfig(), memory_mb=1)
    with closing(reader(mixed)) as large, closing(reader(mixed, config=small)) as own:
        own._frames._budget_bytes = 12_000  # of these frames a dozen at most
        for _ in range(2):
            ours, theirs = read_all(own), read_all(large)
            for key in theirs:
                assert torch.equal(ours[key], theirs[key]), key
            assert own.decoded_bytes <= 12_000
        assert own.decodes > large.decodes


@pytest.mark.parametrize("counted", ["together", "each"])
@pytest.mark.parametrize("frames", ["distinct", "windows"])
def test_a_capacity_is_reached_and_holds_every_camera(
    stores: dict[str, EpisodeStore], counted: Literal["together", "each"], frames: Literal["distinct", "windows"]
) -> None:
    mixed = [stores["full"], stores["bare"]]
    with closing(reader(mixed, images_counted=counted, config=LoaderConfig(frames=frames))) as own:
        assert is_sized(own)
        loader = Loader(own, seed=1, lanes=2, global_batch=4, micro_batch=4, segment_windows=2)
        for rows, keys in loader.first_samples(12):
            size = own.size(rows, keys, crops=False)
            free = own.read(rows, rows, keys)
            used = [int((free[index_key(role)] >= 0).sum()) for role in BOTH]
            if frames == "distinct":
                used = [len(free[frames_key(role)]) for role in BOTH]
            assert size == (sum(used) if counted == "together" else max(used))
            assert size <= own.size(rows, keys, crops=True) <= own.largest_size(4, 2)
            padded = own.read(rows, rows, keys, capacity=size + 1)
            wrist = (size + 1) // 2 if counted == "together" else size + 1  # none without a frame of the main one
            assert [len(padded[frames_key(role)]) for role in BOTH] == [size + 1, wrist]
            for role in BOTH:
                there = free[index_key(role)] >= 0
                assert torch.equal(
                    padded[frames_key(role)][padded[index_key(role)][there]],
                    free[frames_key(role)][free[index_key(role)][there]],
                )


def batches(stores: Sequence[EpisodeStore], count: int, position: int = 0, **settings: Any) -> Iterator[Batch]:
    with closing(reader(stores, config=settings.pop("config", LoaderConfig()))) as own:
        loader = Loader(own, seed=5, lanes=2, global_batch=4, position=position, **settings)
        with closing(iter(loader)) as stream:  # type: ignore[type-var]
            yield from itertools.islice(stream, count)


def test_a_mixture_resumes_exactly_on_other_workers(stores: dict[str, EpisodeStore]) -> None:
    mixed = [stores["full"], stores["bare"]]
    whole = list(batches(mixed, 8, micro_batch=4, weights=[1.0, 1.0]))
    later = [list(batches(mixed, 4, 16, micro_batch=2, weights=[1.0, 1.0], rank=r, world_size=2)) for r in (0, 1)]

    def seen(batch: Batch, place: int) -> dict[str, Any]:
        windows = {key: batch[key][place].tolist() for key in ("episode", "step", "store", "state", "state_mask")}
        indices = {role: batch[index_key(role)][place] for role in BOTH}
        return windows | {
            r: [batch[frames_key(r)][i].tolist() if i >= 0 else None for i in n] for r, n in indices.items()
        }

    expected = {int(batch["sample_id"][i]): seen(batch, i) for batch in whole[4:] for i in range(4)}
    found = {int(b["sample_id"][i]): seen(b, i) for rank in later for b in rank for i in range(2)}
    assert found == expected


def test_noise_for_frames_is_noise_of_every_camera(stores: dict[str, EpisodeStore]) -> None:
    config = LoaderConfig(mode="synthetic")
    drawn = list(batches([stores["full"]], 2, micro_batch=4, config=config))
    check_batch(drawn[0], action_size=11, cameras=BOTH, state_size=4)
    with closing(reader([stores["full"]])) as own:
        real = own.read(drawn[0]["sample_id"].numpy(), np.arange(4))
    assert not any(torch.equal(drawn[0][frames_key(role)][:1], real[frames_key(role)][:1]) for role in BOTH)


def test_a_state_that_is_not_finite_is_refused_with_its_place_if_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    step = two_cameras._step

    def odd(*given: Any) -> dict[str, Any]:
        made.append(step(*given))
        if len(made) == 11:  # the second episode's second step
            made[-1]["observation"]["state"][1] = np.nan
        return made[-1]

    monkeypatch.setattr(two_cameras, "_step", odd)
    store = two_cameras.store(tmp_path)
    assert any("the state is not finite at 1 steps of 1 of 3" in remark for remark in store.manifest.remarks)
    where = r"state/y is not finite at step 1 of episode 1 of .*shard-00000-of-00002.parquet"
    with pytest.raises(ValueError, match=where):
        reader([store])
    with monkeypatch.context() as patch:
        patch.setattr(WindowReader, "_require_finite_states", lambda _: None)
        with closing(reader([store])) as own, pytest.raises(ValueError, match=where):
            read_all(own)
    side = store_inputs(store, cameras=(), state=True).state
    assert side is not None and side.statistics.count == 18
    silent = replace(store.manifest, proprio=replace(store.manifest.proprio, statistics=None))  # as of before
    with pytest.raises(ValueError, match=where):
        reader([replace(store, manifest=silent)])
    finite = StateColumns(names=("state/z",), sides=(side.chosen(("state/z",)),))
    transforms = [store.dataset.transform]
    with closing(WindowReader([store], transforms, num_steps=2, config=LoaderConfig(), state=finite)) as own:
        check_batch(read_all(own), action_size=11, state_size=1)


def test_a_state_that_is_not_finite_at_a_terminal_step_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = two_cameras._step

    def ending(random: np.random.Generator, number: int, length: int, *given: Any) -> dict[str, Any]:
        made = step(random, number, length, *given)
        if number == length - 1:
            made["is_terminal"] = True
            made["observation"]["state"][1] = np.nan
        return made

    monkeypatch.setattr(two_cameras, "_step", ending)
    store = two_cameras.store(tmp_path)
    with closing(reader([store])) as own:
        batch = read_all(own)
    check_batch(batch, action_size=11, cameras=BOTH, state_size=4)
    side = store_inputs(store, cameras=(), state=True).state
    assert side is not None and side.statistics.count == 16
    mean = side.normalised(np.array(side.statistics.mean, np.float32))[1]
    ends = np.cumsum([9, 4, 6]) - 1
    assert not batch["loss_mask"][ends, -1].any()
    np.testing.assert_allclose(batch["state"][ends, -1, 1], mean, atol=1e-6)


def test_the_main_camera_is_the_one_of_its_name(stores: dict[str, EpisodeStore]) -> None:
    """An older store may have both `image` and `side`, which now means `image`."""
    full = stores["full"]
    renamed = {"side": "observation/hand_image", "image": "observation/image"}
    assert own_camera(replace(full, manifest=replace(full.manifest, cameras=renamed)), "image") == "image"


def test_a_frame_that_cannot_be_used_is_named_with_its_camera(stores: dict[str, EpisodeStore]) -> None:
    full = stores["full"]
    (recipe,) = store_inputs(full, cameras=BOTH, state=False).cameras
    wrong = {"wrist": replace(recipe, height=7)}
    transforms = [merge_contracts([full.contract]).datasets[0].transform]
    with closing(
        WindowReader([full], transforms, num_steps=1, config=LoaderConfig(), cameras=BOTH, recipes=wrong)
    ) as own:
        with pytest.raises(ValueError, match=r"frame of camera wrist at step 0 of episode 0 .* is 8x8, .* says 7x8"):
            own.read(np.arange(1), np.arange(1))
        assert not any(cache._active for cache in own._frames._caches.values()), "a failed read gives back its slots"
