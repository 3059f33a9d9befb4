"""A store as a LeRobot dataset: numbers exactly, pictures within the codec's loss, files as lerobot reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines import cli
from preprocessing.lerobot import video_files, writer
from preprocessing.lerobot.dataset import open_lerobot
from preprocessing.lerobot.export import ExportConfig, ExportSummary, export_store
from preprocessing.lerobot.writer import LeRobotWriter, NumberFeature
from preprocessing.rlds import Episode
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image, encode_png
from tests.preprocessing.lerobot.test_convert_lerobot import converted
from tests.preprocessing.lerobot.test_lerobot_dataset import GOLDEN, episodes_of
from tests.support.tiny_lerobot import TOP, WRIST, episode, write_v3
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset


def exported(store: EpisodeStore, out: Path, **settings: object) -> ExportSummary:
    return export_store(store, str(out), ExportConfig(**settings))  # type: ignore[arg-type]


def pictures(item: Episode, camera: str) -> np.ndarray:
    frames = item.steps[camera]
    return np.stack([decode_image(frame) if isinstance(frame, bytes) else np.asarray(frame) for frame in frames])


def psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(first.astype(float) - second).mean()))


@pytest.mark.parametrize("codec", ["h264", "av1", "stored"])
def test_golden_folder_comes_back_equal(tmp_path: Path, codec: str) -> None:
    store = converted(GOLDEN, tmp_path / "store", cameras=("image", "wrist"))
    summary = exported(store, tmp_path / "back", pictures=codec)
    assert (summary.episodes, summary.frames, summary.tasks) == (2, 19, 2)
    for before, after in zip(episodes_of(GOLDEN), episodes_of(tmp_path / "back"), strict=True):
        for name in ("action", "observation.state", "next.reward", "next.done", "timestamp", "index", "task_index"):
            assert np.array_equal(before.steps[name], after.steps[name]), name
            assert np.asarray(before.steps[name]).dtype == np.asarray(after.steps[name]).dtype, name
        assert before.steps["task"] == after.steps["task"]
        if codec == "stored":
            assert after.steps[WRIST] == before.steps[WRIST]  # the very bytes
        assert psnr_db(pictures(before, TOP), pictures(after, TOP)) > 28  # a thin bar on black: hard for a codec
    stated = summary.psnr_db[TOP]
    assert (stated is None) == (codec == "stored")
    if stated is not None:
        first = episodes_of(tmp_path / "back")[0]
        kept = [decode_image(frame) for frame in store.read_episode(0, 0, ["image"])["image"].to_pylist()]
        assert stated == pytest.approx(psnr_db(np.stack(kept), pictures(first, TOP)), abs=0.1)


def test_every_number_of_a_draft_comes_back(tmp_path: Path) -> None:
    written = [episode(seed, 3 + seed) for seed in range(4)]
    write_v3(tmp_path / "my_set", [written[:2], written[2:]])
    exported(converted(tmp_path / "my_set", tmp_path / "store"), tmp_path / "back")
    for original, item in zip(written, episodes_of(tmp_path / "back"), strict=True):
        for name, values in original.columns.items():
            read = np.asarray(item.steps[name])
            assert read.dtype == values.dtype and np.array_equal(read.reshape(values.shape), values), name


def test_the_canonical_action_can_be_the_action(tmp_path: Path) -> None:
    write_v3(tmp_path / "my_set", [[episode(0, 5)]])
    store = converted(tmp_path / "my_set", tmp_path / "store")
    assert exported(store, tmp_path / "back", action="canonical").action == "action"
    features = json.loads((tmp_path / "back/meta/info.json").read_text())["features"]
    assert features["action"]["names"][0] == "world_vector_x" and features["action"]["shape"] == [7]
    assert features["source.action"]["shape"] == [7]


def test_an_rlds_store_has_flags_and_marks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = write_dataset(tmp_path / "b", "bridge_dataset", bridge_features(), [[bridge_episode(rng, 4)]])
    code = cli.main(["preprocess", str(source), str(tmp_path / "stores"), "--workers", "0", "--encoder", "hash"])
    assert code == 0
    assert cli.main(["export-lerobot", str(tmp_path / "stores"), str(tmp_path / "back"), "--fps", "5"]) == 0
    (item,) = episodes_of(tmp_path / "back")
    assert {"flag.first_zero_action", "is_terminal", "next.done", "canonical_action"} <= set(item.steps)
    origin = json.loads((tmp_path / "back/meta/rt_pipelines.json").read_text())
    assert origin["dataset"] == "bridge_dataset" and origin["canonical_action"]["units"][1] == "m"


# --- Files as lerobot reads them ---


def test_tasks_are_the_index_of_a_pandas_frame(tmp_path: Path) -> None:
    write_v3(tmp_path / "my_set", [[episode(seed, 2) for seed in (2, 0, 1)]])
    exported(converted(tmp_path / "my_set", tmp_path / "store"), tmp_path / "back")
    tasks = pd.read_parquet(tmp_path / "back/meta/tasks.parquet")
    assert tasks.iloc[0].name == "wipe the table" and tasks["task_index"].tolist() == [0, 1, 2]


def test_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    written = [episode(seed, 50) for seed in range(3)]
    write_v3(tmp_path / "my_set", [written])
    exported(converted(tmp_path / "my_set", tmp_path / "store"), tmp_path / "back")
    statistics = json.loads((tmp_path / "back/meta/stats.json").read_text())
    action = np.concatenate([one.columns["action"] for one in written]).astype(np.float64)
    for name, expected in {
        "min": action.min(0),
        "max": action.max(0),
        "mean": action.mean(0),
        "std": action.std(0),
    }.items():
        assert np.allclose(statistics["action"][name], expected, atol=1e-12), name
    assert np.allclose(statistics["action"]["q90"], np.quantile(action, 0.9, axis=0), rtol=1e-3, atol=1e-4)
    assert statistics["action"]["count"] == [150]
    assert np.shape(statistics[TOP]["mean"]) == (3, 1, 1) and 0 < statistics[TOP]["mean"][0][0][0] < 1


def test_large_sets_go_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "DATA_BYTES", 1)
    monkeypatch.setattr(writer, "VIDEO_BYTES", 1)
    monkeypatch.setattr(writer, "CHUNK_FILES", 2)
    monkeypatch.setattr(video_files, "CHUNK_FILES", 2)
    written = [episode(seed, 4) for seed in range(5)]
    write_v3(tmp_path / "my_set", [written])
    exported(converted(tmp_path / "my_set", tmp_path / "store"), tmp_path / "back")
    files = [f"chunk-00{number // 2}/file-00{number % 2}.parquet" for number in range(5)]
    assert (
        sorted(str(path.relative_to(tmp_path / "back/data")) for path in (tmp_path / "back/data").rglob("*.parquet"))
        == files
    )
    assert len(list((tmp_path / "back/videos").rglob("*.mp4"))) > 1
    for original, item in zip(written, episodes_of(tmp_path / "back"), strict=True):
        assert np.array_equal(item.steps["action"], original.columns["action"])
        assert len(pictures(item, TOP)) == original.length


def test_a_row_group_an_episode(tmp_path: Path) -> None:
    write_v3(tmp_path / "my_set", [[episode(seed, 3 + seed) for seed in range(3)]])
    exported(converted(tmp_path / "my_set", tmp_path / "store"), tmp_path / "back")
    metadata = pq.ParquetFile(tmp_path / "back/data/chunk-000/file-000.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [3, 4, 5]


@given(
    shape=st.sampled_from([(1,), (3,), (2, 3), (2, 1, 2)]),
    dtype=st.sampled_from(["float32", "float64", "int8", "uint16", "int64", "bool"]),
    data=st.data(),
)
def test_any_numbers_come_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], dtype: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("set") / "s"
    folder.mkdir()
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
    values = data.draw(arrays(dtype, (4, *shape), elements=elements or None))
    feature = NumberFeature(name="value", dtype=dtype, shape=shape)
    made = LeRobotWriter(folder, fps=10, features=[feature], cameras=[WRIST], pictures="stored")
    (folder / "meta").mkdir()
    picture = encode_png(np.zeros((4, 6, 3), np.uint8))
    with np.errstate(all="ignore"):
        made.add({"value": values}, ["do"] * 4, {WRIST: [picture] * 4})
        made.close()
    (item,) = episodes_of(folder)
    read = np.asarray(item.steps["value"])
    assert read.dtype == values.dtype and np.array_equal(read.reshape(values.shape), values)


# --- Refusals ---


def test_a_rate_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    write_v3(tmp_path / "my_set", [[episode(0, 3)]])
    info = tmp_path / "my_set/meta/info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fps": 12.5}))
    store = converted(tmp_path / "my_set", tmp_path / "store")
    with pytest.raises(ValueError, match=r"12\.5 steps a second, LeRobot a whole number: say which with --fps"):
        exported(store, tmp_path / "back")
    exported(store, tmp_path / "back", fps=12)
    assert open_lerobot(str(tmp_path / "back")).control_hz == 12


def test_what_is_there_is_not_overwritten_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_v3(tmp_path / "my_set", [[episode(0, 3)]])
    converted(tmp_path / "my_set", tmp_path / "store")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.iterdir())
    assert cli.main(["export-lerobot", str(tmp_path / "store"), str(tmp_path / "there")]) == 2
    assert "is there already: name a new folder" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v3(tmp_path / "my_set", [[episode(0, 3)]])
    store = converted(tmp_path / "my_set", tmp_path / "store")

    def fail(self: LeRobotWriter) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(LeRobotWriter, "close", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="full"):
        exported(store, tmp_path / "new/er/back")
    assert sorted(tmp_path.iterdir()) == before
