"""LeRobot folders as a source: what lerobot itself wrote is read exactly, and damage costs the episodes it lies in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.episode_source import open_source
from preprocessing.lerobot.dataset import LeRobotDataset, open_lerobot
from preprocessing.lerobot.video import VideoFrames
from preprocessing.rlds import Corrupt, Episode
from preprocessing.store.images import decode_image
from tests.support.tiny_lerobot import TASKS, TOP, WRIST, TinyEpisode, brightness, episode, write_v3, write_v21

GOLDEN = Path(__file__).parents[2] / "data/lerobot_v3"
DATA = "data/chunk-000/file-000.parquet"
ENTRIES = "meta/episodes/chunk-000/file-000.parquet"


def read(dataset: LeRobotDataset, split: str = "train") -> list[Episode | Corrupt]:
    return [item for shard in dataset.shards(split) for item in dataset.read_shard(shard)]


def episodes_of(folder: Path, split: str = "train") -> list[Episode]:
    items = read(open_lerobot(str(folder)), split)
    assert all(isinstance(item, Episode) for item in items), [getattr(item, "reason", "") for item in items]
    return [item for item in items if isinstance(item, Episode)]


def put(folder: Path, name: str, values: pa.Array | None, file: str = DATA) -> None:
    """Writes other values into a column of a Parquet file, or takes the column away."""
    table = pq.read_table(folder / file)
    place = table.schema.get_field_index(name)
    changed = table.remove_column(place) if values is None else table.set_column(place, name, values)
    pq.write_table(changed, folder / file)


def assert_same(read_back: Episode, written: TinyEpisode, seed: int) -> None:
    for name, values in written.columns.items():
        assert np.array_equal(np.asarray(read_back.steps[name]).reshape(values.shape), values), name
        assert np.asarray(read_back.steps[name]).dtype == values.dtype, name
    assert read_back.steps["task"] == [TASKS[written.task].encode()] * written.length
    wrist = [decode_image(picture) for picture in read_back.steps[WRIST]]  # type: ignore[arg-type]
    assert np.array_equal(wrist, written.wrist_NHWC)
    levels = [np.asarray(frame).mean() for frame in read_back.steps[TOP]]
    assert np.abs(levels - brightness(seed, np.arange(written.length))).max() < 4  # of 9 to the next step


# --- What lerobot 0.4.4 wrote ---


def test_golden_folder_is_read_exactly() -> None:
    rng = np.random.default_rng(0)
    dataset = open_source(str(GOLDEN))
    assert (dataset.version, dataset.control_hz) == ("v3.0", 10.0)
    for number, (item, length) in enumerate(zip(episodes_of(GOLDEN), (12, 7), strict=True)):
        steps = [(rng.normal(size=3), rng.normal(size=7)) for _ in range(length)]
        assert np.array_equal(item.steps["observation.state"], np.float32([state for state, _ in steps]))
        assert np.array_equal(item.steps["action"], np.float32([action for _, action in steps]))
        assert np.array_equal(np.ravel(item.steps["next.done"]), np.arange(length) == length - 1)
        assert item.steps["task"] == [(b"open the drawer", b"close the drawer")[number]] * length
        assert item.num_steps == length


@pytest.mark.parametrize("camera", [TOP, WRIST])
def test_golden_frames_show_the_bar_of_their_step(camera: str) -> None:
    for number, item in enumerate(episodes_of(GOLDEN)):
        for step, source in enumerate(item.steps[camera]):
            frame = decode_image(source) if isinstance(source, bytes) else np.asarray(source)
            bar = (5 * step) % 64
            drawn = np.zeros((48, 64, 3))
            drawn[:, bar : bar + 6] = (255, 200 * number, 40)
            error = np.abs(frame.astype(float) - drawn)
            if camera == WRIST:
                assert error.max() == 0
            assert frame.shape == (48, 64, 3) and error.mean() < 6


# --- Layouts ---


@pytest.mark.parametrize("row_group_rows", [None, 1, 5, 1000])
def test_episodes_in_shared_files_and_row_groups_of_any_size(tmp_path: Path, row_group_rows: int | None) -> None:
    written = [episode(seed, length) for seed, length in enumerate((3, 8, 1, 5, 6))]
    write_v3(tmp_path / "set", [written[:3], written[3:]], row_group_rows=row_group_rows)
    for seed, (item, original) in enumerate(zip(episodes_of(tmp_path / "set"), written, strict=True)):
        assert_same(item, original, seed)


def test_v21_has_a_file_an_episode(tmp_path: Path) -> None:
    written = [episode(seed, 4 + seed) for seed in range(5)]
    write_v21(tmp_path / "set", written, chunk_size=2)
    assert [shard.num_records for shard in open_lerobot(str(tmp_path / "set")).shards("train")] == [2, 2, 1]
    for seed, (item, original) in enumerate(zip(episodes_of(tmp_path / "set"), written, strict=True)):
        assert_same(item, original, seed)


@pytest.mark.parametrize("split, numbers", [("train[1:3]", [1, 2]), ("train[-1:]", [4]), ("train[:40%]", [0, 1])])
def test_a_slice_of_the_split(tmp_path: Path, split: str, numbers: list[int]) -> None:
    written = [episode(seed, 4) for seed in range(5)]
    write_v3(tmp_path / "set", [written[:2], written[2:]])
    assert [item.record for item in episodes_of(tmp_path / "set", split)] == numbers


def test_shards_divide_into_parts_that_hold_every_episode_once(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(seed, 4) for seed in range(7)]])
    dataset = open_lerobot(str(tmp_path / "set"))
    (shard,) = dataset.shards("train")
    parts = shard.parts(shard.num_bytes // 3)
    assert len(parts) > 2
    assert [item.record for part in parts for item in dataset.read_shard(part)] == list(range(7))


def test_one_column_does_not_read_the_videos(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    shutil.rmtree(tmp_path / "set/videos")
    dataset = open_lerobot(str(tmp_path / "set"))
    (item,) = [i for shard in dataset.shards("train") for i in dataset.read_shard(shard, paths=["action", "task"])]
    assert isinstance(item, Episode) and set(item.steps) == {"action", "task"}


# --- Damage ---


def test_rows_that_the_metadata_do_not_declare_cost_their_episode_alone(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(seed, 4) for seed in range(3)]])
    table = pq.read_table(tmp_path / "set" / DATA)
    pq.write_table(table.filter(pa.array(np.arange(12) != 6)), tmp_path / "set" / DATA)
    first, short, last = read(open_lerobot(str(tmp_path / "set")))
    assert isinstance(first, Episode) and isinstance(last, Episode)
    assert isinstance(short, Corrupt) and "declare 4 frames" in short.reason and "holds 3" in short.reason


def test_a_damaged_row_group_costs_its_episode_alone(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(seed, 40) for seed in range(3)]])
    path = tmp_path / "set" / DATA
    group = pq.ParquetFile(path).metadata.row_group(1)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema.startswith(WRIST))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = bytes(40)
    path.write_bytes(data)
    first, damaged, last = read(open_lerobot(str(tmp_path / "set")))
    assert isinstance(first, Episode) and isinstance(last, Episode)
    assert isinstance(damaged, Corrupt) and "cannot be read" in damaged.reason


def test_a_value_that_is_missing_costs_its_episode(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(seed, 4) for seed in range(3)]])
    path = tmp_path / "set" / DATA
    table = pq.read_table(path)
    actions = table["action"].to_pylist()
    actions[5][2] = None
    column = pa.array(actions, table.schema.field("action").type)
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", column), path)
    first, missing, last = read(open_lerobot(str(tmp_path / "set")))
    assert isinstance(first, Episode) and isinstance(last, Episode)
    assert isinstance(missing, Corrupt) and "action: 1 of 28 values are missing" in missing.reason


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("frame_index", [0, 2, 1, 3], "frame_index goes from 0 to 2 at step 1"),
        ("frame_index", [0, 1, 5, 6], "frame_index goes from 1 to 5 at step 2"),
        ("frame_index", [1, 2, 3, 4], "frame_index begins with 1, and an episode's first frame is 0"),
        ("timestamp", [0.0, 0.3, 0.6, 0.9], "timestamp goes on by 0.3000 s a step (the median), and 10 frames"),
        ("timestamp", [0.0, 0.1, 0.1, 0.2], "timestamp goes from 0.1000 to 0.1000 s at step 2: it must increase"),
        ("timestamp", [0.0, 0.1, np.nan, 0.3], "timestamp goes from 0.1000 to nan s at step 2"),
        ("timestamp", [0.0, 0.1, 0.3, 0.4], "timestamp leads to 0.8000 s of videos/"),  # the last one's first
        ("timestamp", [-0.1, 0.0, 0.1, 0.2], "timestamp leads to 0.3000 s of videos/"),  # the first one's last
    ],
)
def test_frames_that_are_missing_or_moved_cost_their_episode(
    tmp_path: Path, column: str, values: list[float], words: str
) -> None:
    write_v3(tmp_path / "set", [[episode(seed, 4) for seed in range(3)]])
    whole = pq.read_table(tmp_path / "set" / DATA)[column]
    changed = [*whole.to_pylist()[:4], *values, *whole.to_pylist()[8:]]
    put(tmp_path / "set", column, pa.array(changed, whole.type))
    first, moved, last = read(open_lerobot(str(tmp_path / "set")))
    assert isinstance(first, Episode) and isinstance(last, Episode)
    assert isinstance(moved, Corrupt) and words in moved.reason


def test_moved_frames_are_seen_where_only_numbers_are_read(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    put(tmp_path / "set", "frame_index", pa.array([0, 2, 1, 3]))
    dataset = open_lerobot(str(tmp_path / "set"))
    (item,) = dataset.read_shard(dataset.shards("train")[0], paths=["action"])
    assert isinstance(item, Corrupt) and "frame_index goes from 0 to 2" in item.reason


def test_clocks_that_tremble_a_little_cost_nothing(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    put(tmp_path / "set", "timestamp", pa.array([0.02, 0.11, 0.19, 0.31], pa.float32()))
    assert episodes_of(tmp_path / "set")[0].num_steps == 4


def test_a_clock_that_halted_once_costs_nothing_where_no_video_hangs_on_it(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    put(tmp_path / "set", "timestamp", pa.array([0.0, 0.1, 0.26, 0.36], pa.float32()))
    dataset = open_lerobot(str(tmp_path / "set"))
    (shard,) = dataset.shards("train")
    (item,) = dataset.read_shard(shard, paths=["action", WRIST])
    assert isinstance(item, Episode) and item.num_steps == 4


@pytest.mark.parametrize("write", [write_v3, write_v21])
def test_a_video_may_be_longer_than_its_steps(tmp_path: Path, write: Callable[..., Path]) -> None:
    """Frame 2 was shown but not recorded: the episode's part of the file holds all that its timestamps lead to."""
    one = replace(episode(0, 4), video_NHWC=episode(0, 5).video_NHWC)
    folder = write(tmp_path / "set", [[one]] if write is write_v3 else [one])
    times = pa.array([0.0, 0.1, 0.3, 0.4], pa.float32())
    if write is write_v3:
        put(folder, "timestamp", times)
        put(folder, f"videos/{TOP}/to_timestamp", pa.array([0.5]), ENTRIES)
    else:
        put(folder, "timestamp", times, "data/chunk-000/episode_000000.parquet")
    (item,) = episodes_of(folder)
    levels = [np.asarray(frame).mean() for frame in item.steps[TOP]]
    assert np.abs(levels - brightness(0, np.array([0, 1, 3, 4]))).max() < 4


@pytest.mark.parametrize("ends", [None, pa.array([0.3, 0.7])])
def test_where_a_video_ends_may_be_left_out_or_be_its_last_frame_s_time(tmp_path: Path, ends: pa.Array | None) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4), episode(1, 4)]])
    put(tmp_path / "set", f"videos/{TOP}/to_timestamp", ends, ENTRIES)
    assert [item.num_steps for item in episodes_of(tmp_path / "set")] == [4, 4]
    put(tmp_path / "set", "timestamp", pa.array([0.0, 0.1, 0.3, 0.4] * 2, pa.float32()))
    assert all(isinstance(item, Corrupt) for item in read(open_lerobot(str(tmp_path / "set"))))


def test_a_part_of_a_video_that_lacks_frames_costs_its_episode(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4), episode(1, 4)]])
    put(tmp_path / "set", f"videos/{TOP}/to_timestamp", pa.array([0.2, 0.8]), ENTRIES)
    short, whole = read(open_lerobot(str(tmp_path / "set")))
    assert isinstance(short, Corrupt) and "lies there from 0.0000 to 0.3000 s" in short.reason
    assert isinstance(whole, Episode)


def test_numbers_may_be_lists_of_one_value(tmp_path: Path) -> None:
    written = [episode(seed, 4) for seed in range(2)]
    write_v3(tmp_path / "set", [written])
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        values = pq.read_table(tmp_path / "set" / DATA)[name].combine_chunks()
        put(tmp_path / "set", name, pa.ListArray.from_arrays(pa.array(range(9), pa.int32()), values))
    for seed, (item, original) in enumerate(zip(episodes_of(tmp_path / "set"), written, strict=True)):
        assert_same(item, original, seed)


@pytest.mark.parametrize("name", ["timestamp", "frame_index"])
def test_a_column_that_the_file_lacks_is_in_the_way_only_where_someone_wants_it(tmp_path: Path, name: str) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    put(tmp_path / "set", name, None)
    dataset = open_lerobot(str(tmp_path / "set"))
    (shard,) = dataset.shards("train")
    (item,) = dataset.read_shard(shard, paths=["action", WRIST])
    assert isinstance(item, Episode) and item.num_steps == 4
    (shown,) = dataset.read_shard(shard, paths=["action", TOP])
    if name == "timestamp":
        assert isinstance(shown, Corrupt) and "has no column 'timestamp'" in shown.reason
    else:
        assert isinstance(shown, Episode)


def test_a_folder_s_name_is_no_pattern(tmp_path: Path) -> None:
    assert len(episodes_of(write_v3(tmp_path / "set [1] *", [[episode(0, 4)]]))) == 1


def test_a_task_may_hold_any_sign_that_json_lets_stand(tmp_path: Path) -> None:
    folder = write_v21(tmp_path / "set", [episode(0, 4)])
    tasks = [{"task_index": number, "task": f"{text}\u2028\x85é"} for number, text in enumerate(TASKS)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tasks)
    (folder / "meta/tasks.jsonl").write_text(lines)
    assert episodes_of(folder)[0].steps["task"] == [f"{TASKS[0]}\u2028\x85é".encode()] * 4


def test_the_fingerprint_follows_every_number(tmp_path: Path) -> None:
    one = episode(0, 4)
    write_v3(tmp_path / "a", [[one]])
    one.columns["counts"][2, 1] += 1
    write_v3(tmp_path / "b", [[one]])
    (first,), (second,) = episodes_of(tmp_path / "a"), episodes_of(tmp_path / "b")
    assert first.crc != second.crc
    assert first.crc == episodes_of(tmp_path / "a")[0].crc


def test_a_file_that_is_cut_costs_its_episodes_with_a_reason(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)], [episode(1, 4)]])
    (tmp_path / "set" / DATA).write_bytes((tmp_path / "set" / DATA).read_bytes()[:-20])
    cut, whole = read(open_lerobot(str(tmp_path / "set")))
    assert isinstance(cut, Corrupt) and "cannot be read" in cut.reason
    assert isinstance(whole, Episode)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    (tmp_path / "set" / DATA).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data/chunk-000/file-000\.parquet"):
        open_lerobot(str(tmp_path / "set")).shards("train")


@pytest.mark.parametrize("shift_s", [0.05, 0.5])
def test_a_video_without_a_frame_at_the_wanted_time_is_refused(tmp_path: Path, shift_s: float) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    put(tmp_path / "set", f"videos/{TOP}/from_timestamp", pa.array([shift_s]), ENTRIES)
    put(tmp_path / "set", f"videos/{TOP}/to_timestamp", pa.array([shift_s + 0.4]), ENTRIES)
    (item,) = episodes_of(tmp_path / "set")
    with pytest.raises(ValueError, match=r"has no frame at"):
        list(item.steps[TOP])


def test_a_video_that_is_no_video_is_a_value_error(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    next((tmp_path / "set/videos").rglob("*.mp4")).write_bytes(b"nothing" * 100)
    (item,) = episodes_of(tmp_path / "set")
    with pytest.raises(ValueError, match="cannot be decoded"):
        list(item.steps[TOP])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"codebase_version": "v1.6"}, "v1.6 is not read"),
        ({"fps": 0}, "fps is 0"),
        ({"splits": {"train": "0:99"}}, "must be first:stop of 1 episodes"),
        ({"data_path": "../{chunk_index}.parquet"}, "leads out of the dataset"),
        ({"data_path": "data/{0.__class__}.parquet"}, "cannot be filled in"),
        ({"features": []}, "not as it was written"),
    ],
)
def test_metadata_that_make_no_sense_are_one_sentence(tmp_path: Path, change: dict[str, object], words: str) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    path = tmp_path / "set/meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        open_lerobot(str(tmp_path / "set"))


def test_channels_may_stand_first_in_a_camera_s_shape(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    path = tmp_path / "set/meta/info.json"
    info = json.loads(path.read_text())
    info["features"][TOP] |= {"shape": [3, 32, 48], "names": ["height", "width", "rgb"]}
    path.write_text(json.dumps(info))
    assert open_lerobot(str(tmp_path / "set")).feature(TOP).shape == (32, 48, 3)


def test_features_of_unknown_kinds_are_in_the_way_only_where_someone_wants_them(tmp_path: Path) -> None:
    write_v3(tmp_path / "set", [[episode(0, 4)]])
    path = tmp_path / "set/meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["language_events"] = {"dtype": "language", "shape": [1], "names": None}
    path.write_text(json.dumps(info))
    (item,) = episodes_of(tmp_path / "set")
    assert "language_events" not in item.steps
    assert "neither a picture" in open_lerobot(str(tmp_path / "set")).feature("language_events").refusal


def test_frames_shown_before_the_key_frame_of_an_open_group_are_found(tmp_path: Path) -> None:
    """A decoder that begins at such a key frame lacks the frames shown before it, which hang on the group before."""
    path, fps, count = tmp_path / "open.mp4", 10, 100
    with av.open(str(path), "w") as container:
        options = {"bf": "3", "crf": "5", "x264-params": "open-gop=1:keyint=12"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 48, 64, "yuv420p", Fraction(1, fps)
        for number in range(count):
            frame = np.full((48, 64, 3), number * 7 % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    for first in range(count - 2):
        shown = np.arange(first, first + 2)
        frames = [frame.mean() for frame in VideoFrames(url=str(path), times_s=shown / fps, fps=fps)]
        assert np.abs(np.array(frames) - (shown * 7) % 250).max() < 5, first
