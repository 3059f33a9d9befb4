"""The conversion: real Bridge episodes, damage accounted for, killed and resumed, with and without Ray."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing import dataset_spec
from preprocessing.convert import ConvertConfig, Summary, convert, convert_shards
from preprocessing.rlds import Episode, open_dataset
from preprocessing.store.episode_store import EpisodeStore
from tests.support.file_contents import file_contents
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset

HERE = ConvertConfig(workers=0)


def rows(store: EpisodeStore) -> dict[str, list]:
    table = pq.read_table([shard.path for shard in store.shards])
    return table.to_pydict()


def balanced(summary: Summary) -> bool:
    return summary.episodes_in == summary.episodes_out + summary.quarantined


@pytest.fixture
def bridge(data_dir: Path) -> Path:
    return data_dir / "bridge_dataset/1.0.0"


def test_the_real_bridge_episodes(bridge: Path, tmp_path: Path) -> None:
    summary = convert(str(bridge), str(tmp_path), HERE)
    assert (summary.episodes_in, summary.episodes_out, summary.quarantined) == (25, 25, 0)
    assert (summary.steps, summary.instructions) == (250, 4)
    store = EpisodeStore.open(str(tmp_path))
    store.verify()
    found = rows(store)
    vectors = dict(zip(store.instruction_ids.tolist(), store.embeddings, strict=True))
    texts = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
    row = 0
    for number, episode in enumerate(open_dataset(str(bridge)).episodes("train")):
        assert isinstance(episode, Episode)
        for step in range(episode.num_steps):
            assert (found["episode"][row], found["record"][row], found["step"][row]) == (number, number, step)
            assert found["image"][row] == episode.steps["observation/image_0"][step]
            assert texts[found["instruction"][row]].encode() == episode.steps["language_instruction"][step]
            np.testing.assert_array_equal(vectors[found["instruction"][row]], episode.steps["language_embedding"][step])
            np.testing.assert_array_equal(found["source/action"][row], episode.steps["action"][step])
            np.testing.assert_array_equal(found["proprio"][row], episode.steps["observation/state"][step])
            row += 1
    assert row == 250
    # By hand from the second record: [-0.0017841698, ..., -0.19557068] keeps its units, gripper 1 = open becomes -1.
    expected = [1, -1.7841698e-03, 1.5979254e-04, 2.4016541e-03, 3.3817787e-02, -1.4594038e-02, -1.9557068e-01, -1]
    np.testing.assert_allclose(found["action"][1], [*expected, 0, 0, 0], rtol=1e-6)
    assert sum(found["flags"]) == sum(
        flag for flag, step in zip(found["flags"], found["step"], strict=True) if step == 0
    )
    statistics = store.dataset.statistics
    np.testing.assert_allclose(statistics.mean, np.mean(found["action"], axis=0), atol=1e-9)
    assert store.contract.encoder == "universal-sentence-encoder-large/5"
    assert (store.contract.image.height, store.contract.image.width, store.contract.image.resize) == (64, 64, "none")


def test_a_finished_store_is_left_alone_and_guards_its_settings(
    make_bridge: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = str(make_bridge([5], [6, 7])), tmp_path / "out"
    first = convert(source, str(out), HERE)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = convert(source, str(out), HERE)
    assert (first.shards_converted, again.shards_converted) == (2, 0)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ValueError, match=r"finished store made with another encoder .*, now \"hash-512\""):
        convert(source, str(out), ConvertConfig(workers=0, encoder="hash"))
    next(out.rglob("shard-00001*")).write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"shard-00001-of-00002.parquet is missing or cut: delete"):
        convert(source, str(out), HERE)


def test_only_missing_shards_are_done_and_the_bytes_are_the_same(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(make_bridge([5, 3], [6], [7]))
    convert(source, str(tmp_path / "whole"), HERE)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("preprocessing.convert.write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, str(tmp_path / "cut"), HERE)
    monkeypatch.undo()
    root = tmp_path / "cut/bridge_dataset/1.0.0/train"
    (root / ".progress/00001.json").unlink()
    kept = (root / "shard-00000-of-00003.parquet").stat().st_mtime_ns
    with pytest.raises(ValueError, match="unfinished"):
        EpisodeStore.open(str(tmp_path / "cut"))
    with pytest.raises(ValueError, match="unfinished conversion begun with another image_size"):
        convert(source, str(tmp_path / "cut"), ConvertConfig(workers=0, image_size="8x8"))
    assert convert(source, str(tmp_path / "cut"), HERE).shards_converted == 1
    assert (root / "shard-00000-of-00003.parquet").stat().st_mtime_ns == kept
    assert file_contents(tmp_path / "cut") == file_contents(tmp_path / "whole")


def test_two_that_do_the_same_at_once_both_end_well(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = str(make_bridge([5, 3], [6])), str(tmp_path / "out")

    def overtaken(*arguments: Any, **settings: Any) -> None:
        monkeypatch.undo()
        assert convert(source, out, HERE).shards_converted == 2
        convert_shards(*arguments, **settings)

    monkeypatch.setattr("preprocessing.convert.convert_shards", overtaken)
    assert convert(source, out, HERE).episodes_out == 3
    convert(source, str(tmp_path / "alone"), HERE)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "alone")


_CONVERT = "import sys; from preprocessing.convert import *; convert(*sys.argv[1:], ConvertConfig(workers=0))"


def test_killed_anywhere_and_run_again(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source = str(make_bridge(*([20] * 6 for _ in range(10))))
    convert(source, str(tmp_path / "whole"), HERE)
    command, out = [sys.executable, "-c", _CONVERT, source, str(tmp_path / "killed")], tmp_path / "killed"
    began = []
    for after_s in (0.0, 0.02, 0.05):
        process = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2], stderr=subprocess.DEVNULL)
        while not list(out.rglob("*.json")) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        began.append(process.wait() == -signal.SIGKILL)
    assert any(began)
    convert(source, str(out), HERE)
    assert file_contents(out) == file_contents(tmp_path / "whole")


def test_ray_writes_the_same_bytes(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source = str(make_bridge([5, 3], [6], [7]))
    convert(source, str(tmp_path / "here"), ConvertConfig(workers=0, encoder="hash"))
    summary = convert(source, str(tmp_path / "ray"), ConvertConfig(workers=2, encoder="hash"))
    assert summary.shards_converted == 3
    assert file_contents(tmp_path / "ray") == file_contents(tmp_path / "here")
    bad = make_bridge([5], [6], name="bad")
    file = next(bad.glob("*-00001-of-*"))
    shutil.copy(make_bridge([4], size=(8, 8), name="small").glob("*.tfrecord*").__next__(), file)
    with pytest.raises(ValueError, match=r"differ in size between shards, 8x8 and 16x24: give --image-size"):
        convert(str(bad), str(tmp_path / "bad"), ConvertConfig(workers=2))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(intact, to be damaged) copies of a dataset of two shards with 4 and 3 episodes."""
    folder = tmp_path_factory.mktemp("damage")
    rng = np.random.default_rng(1)
    episodes = [[bridge_episode(rng, 2) for _ in range(count)] for count in (4, 3)]
    intact = write_dataset(folder / "intact", "bridge_dataset", bridge_features(), episodes)
    shutil.copytree(intact, folder / "damaged")
    yield intact, folder / "damaged"


CHANGES = st.lists(
    st.tuples(st.integers(0, 1), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=16)), max_size=4
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, cut=st.floats(0.3, 1), check_crc=st.booleans())
def test_whatever_is_damaged_every_record_is_accounted_for(
    sources: tuple[Path, Path], tmp_path: Path, changes: list[tuple[int, float, bytes]], cut: float, check_crc: bool
) -> None:
    intact, damaged = sources
    for index in range(2):
        name = f"bridge_dataset-train.tfrecord-{index:05d}-of-00002"
        data = bytearray((intact / name).read_bytes())
        for _, place, noise in (change for change in changes if change[0] == index):
            start = int(place * len(data))
            data[start : start + len(noise)] = noise[: len(data) - start]
        (damaged / name).write_bytes(data[: int(cut * len(data))] if index else data)
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    summary = convert(str(damaged), str(out), ConvertConfig(workers=0, check_crc=check_crc))
    assert balanced(summary)
    assert summary.episodes_in == 7 if check_crc else summary.episodes_in >= 7
    store = EpisodeStore.open(str(out))
    store.verify()
    lines = [json.loads(line) for line in Path(store.root, "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == summary.quarantined
    assert all(line["reason"] and line["offset"] >= 0 and line["shard"].startswith("bridge_") for line in lines)
    assert summary.steps == store.num_steps


def test_a_damaged_record_leaves_the_rest_of_its_shard(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source = make_bridge([3, 4, 5])
    file = next(source.glob("*.tfrecord*"))
    data = bytearray(file.read_bytes())
    second = 16 + int.from_bytes(data[:8], "little")
    data[second + 500] ^= 1
    file.write_bytes(data)
    summary = convert(str(source), str(tmp_path / "out"), HERE)
    assert (summary.episodes_in, summary.episodes_out, summary.quarantined, summary.steps) == (3, 2, 1, 8)
    store = EpisodeStore.open(str(tmp_path / "out"))
    (line,) = [json.loads(line) for line in Path(store.root, "quarantine.jsonl").read_text().splitlines()]
    assert (line["shard"], line["record"], line["offset"]) == (file.name, 1, second)
    assert "CRC" in line["reason"]
    assert rows(store)["record"] == [0] * 3 + [2] * 5 and rows(store)["episode"] == [0] * 3 + [1] * 5


def test_a_shard_that_is_all_quarantined_is_an_empty_file(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source = make_bridge([3], [4])
    next(source.glob("*-00000-of-*")).write_bytes(b"\0" * 100)
    summary = convert(str(source), str(tmp_path / "out"), HERE)
    assert (summary.episodes_in, summary.quarantined, summary.steps) == (2, 1, 4)
    store = EpisodeStore.open(str(tmp_path / "out"))
    assert [shard.rows for shard in store.shards] == [0, 4]
    store.verify()


def test_nothing_readable_is_an_error_and_leaves_no_store(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source = make_bridge([3])
    next(source.glob("*.tfrecord*")).write_bytes(b"junk" * 10)
    with pytest.raises(ValueError, match="not one of 1 episodes can be read"):
        convert(str(source), str(tmp_path / "out"), HERE)
    assert not (tmp_path / "out").exists()


def test_large_shards_are_divided(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source = make_bridge([30] * 30, [2], size=(64, 80))
    assert next(source.glob("*-00000-of-*")).stat().st_size > 2 << 20
    whole = convert(str(source), str(tmp_path / "whole"), HERE)
    divided = convert(str(source), str(tmp_path / "divided"), ConvertConfig(workers=0, max_shard_mb=1))
    assert (whole.shards, divided.shards > 3) == (2, True)
    assert (whole.steps, whole.episodes_out) == (divided.steps, divided.episodes_out)
    stores = [EpisodeStore.open(str(tmp_path / name)) for name in ("whole", "divided")]
    means = [store.dataset.statistics.mean for store in stores]
    np.testing.assert_allclose(*means, atol=1e-12)
    found = [{key: column for key, column in rows(store).items() if key != "episode"} for store in stores]
    assert found[0] == found[1]


@pytest.mark.parametrize(("limit", "shards", "steps"), [(1, 1, 5), (2, 1, 8), (3, 2, 14), (99, 3, 21)])
def test_limit(make_bridge: Callable[..., Path], tmp_path: Path, limit: int, shards: int, steps: int) -> None:
    source = str(make_bridge([5, 3], [6], [7]))
    summary = convert(source, str(tmp_path / "out"), ConvertConfig(workers=0, limit=limit))
    assert (summary.shards, summary.steps, summary.episodes_in) == (shards, steps, min(limit, 4))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"image_size": "256"}, "--image-size must be HEIGHTxWIDTH"),
        ({"image_size": "0x9"}, "--image-size must be HEIGHTxWIDTH"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"workers": -1}, "--workers must be 0 or more"),
        ({"max_shard_mb": 0}, "--max-shard-mb must be at least 1"),
        ({"cameras": ("2",)}, "--cameras must name image"),
    ],
)
def test_settings_that_cannot_be(setting: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ConvertConfig(**setting)


def test_refusals_write_nothing(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source, out = str(make_bridge([2])), str(tmp_path / "out")
    for setting, sentence in (
        ({"dataset": "bridge_datset"}, "no dataset spec 'bridge_datset': did you mean 'bridge_dataset'"),
        ({"dataset": "fractal20220817_data"}, "does not fit .*, which has no field"),
        ({"cameras": ("image", "wrist")}, "has no camera 'wrist': choose of image, 1, 2, 3"),
        ({"encoder": "bert"}, "no instruction encoder 'bert'"),
        ({"split": "val"}, "has no split 'val'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            convert(source, out, ConvertConfig(workers=0, **setting))
    assert not Path(out).exists()


@pytest.mark.parametrize("lengths", [None, [], ["0"]])
def test_a_split_without_episodes_is_one_sentence(
    make_bridge: Callable[..., Path], tmp_path: Path, lengths: list[str] | None
) -> None:
    source = make_bridge([2])
    info = json.loads((source / "dataset_info.json").read_text())
    info["splits"] = [{"name": "train"} | ({} if lengths is None else {"shardLengths": lengths})]
    (source / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"split 'train' of .* is declared without episodes"):
        convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0, limit=1))
    assert not (tmp_path / "out").exists()


def test_source_and_target_may_be_urls(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source, memory = make_bridge([5, 3], [6]), fsspec.filesystem("memory")
    memory.put(str(source), "/source/1.0.0", recursive=True)
    convert("memory://source/1.0.0", "memory://out", ConvertConfig(workers=0, limit=3))
    again = convert("memory://source/1.0.0", "memory://out", ConvertConfig(workers=0, limit=3))
    assert again.shards_converted == 0
    memory.get("/out", str(tmp_path / "fetched"), recursive=True)
    convert(str(source), str(tmp_path / "local"), ConvertConfig(workers=0, limit=3))
    assert file_contents(tmp_path / "fetched") == file_contents(tmp_path / "local")
    memory.rm("/", recursive=True)


def test_the_control_rate_may_stand_in_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features = bridge_features()
    spec = replace(dataset_spec.load("bridge_dataset"), control_hz="episode_metadata/hz")
    monkeypatch.setattr("preprocessing.dataset_spec.load", lambda name: spec)
    episodes = [bridge_episode(rng, 2) for _ in range(3)]
    for episode, hz in zip(episodes, (10, 10, 20), strict=True):
        episode["episode_metadata"]["hz"] = hz
    alike = write_dataset(tmp_path / "alike", "bridge_dataset", features, [episodes[:1], episodes[1:2]])
    convert(str(alike), str(tmp_path / "a"), HERE)
    assert EpisodeStore.open(str(tmp_path / "a")).contract.datasets[0].control_hz == 10.0
    mixed = write_dataset(tmp_path / "mixed", "bridge_dataset", features, [episodes])
    with pytest.raises(ValueError, match=r"different rates, \[10.0, 20.0\] Hz"):
        convert(str(mixed), str(tmp_path / "b"), HERE)


def test_preprocessing_imports_no_tensorflow() -> None:
    code = (
        "import importlib, pkgutil, sys, preprocessing\n"
        "for module in pkgutil.walk_packages(preprocessing.__path__, 'preprocessing.'):\n"
        "    if module.name != 'preprocessing.saved_model.tensorflow_export':  # for a process of its own\n"
        "        importlib.import_module(module.name)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], check=True)
