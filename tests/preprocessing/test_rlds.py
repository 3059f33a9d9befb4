"""The reader: real Bridge episodes, TFDS's own serializer as the other side, damage, and clear refusals."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing.rlds import Corrupt, Episode, open_dataset, open_folder
from preprocessing.tfds.tfrecord import Record, read_records
from tests.support.tiny_rlds import frame_record


@pytest.fixture(scope="session")
def bridge(data_dir: Path) -> Path:
    return data_dir / "bridge_dataset/1.0.0"


@pytest.fixture(scope="session")
def bridge_copy(bridge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bridge") / "1.0.0"
    shutil.copytree(bridge, folder)
    return folder


def test_the_real_bridge_file(bridge: Path) -> None:
    dataset = open_dataset(str(bridge))
    assert (dataset.name, dataset.version) == ("bridge_dataset", "1.0.0")
    episodes = [item for item in dataset.episodes("train") if isinstance(item, Episode)]
    assert [episode.num_steps for episode in episodes] == [10] * 25
    first = episodes[0].steps
    assert first["action"].shape == (10, 7)
    np.testing.assert_allclose(
        first["action"][1],
        [-1.7841698e-03, 1.5979254e-04, 2.4016541e-03, 3.3817787e-02, -1.4594038e-02, -1.9557068e-01, 1],
        rtol=1e-6,
    )
    assert first["language_instruction"][0] == b"put cup from counter or drying rack into sink"
    assert len({text for episode in episodes for text in episode.steps["language_instruction"]}) == 4
    assert all(frame.startswith(b"\xff\xd8") for frame in first["observation/image_0"])
    assert first["is_first"].tolist() == [True] + [False] * 9
    assert episodes[0].metadata["episode_metadata/file_path"].startswith(b"/nfs/")


def test_agrees_with_tensorflow_datasets(bridge: Path) -> None:
    from tensorflow_datasets.core import example_parser
    from tensorflow_datasets.core.features import FeaturesDict

    from preprocessing.tfds.tfrecord import Record, read_records

    features = FeaturesDict.from_config(str(bridge))
    parser = example_parser.ExampleParserNp(features.get_serialized_info())
    file = next(bridge.glob("*.tfrecord*"))
    with file.open("rb") as opened:
        records = [r.payload for r in read_records(opened, file.stat().st_size) if isinstance(r, Record)]
    ours = list(open_dataset(str(bridge)).episodes("train"))
    for payload, episode in zip(records[:5], ours, strict=False):
        assert isinstance(episode, Episode)
        theirs = parser.parse_example(payload)
        np.testing.assert_array_equal(theirs["steps"]["action"], episode.steps["action"])
        np.testing.assert_array_equal(theirs["steps"]["is_first"], episode.steps["is_first"])
        images = theirs["steps"]["observation"]["image_2"]
        assert list(images) == episode.steps["observation/image_2"]


def test_only_what_is_asked_for_is_decoded(bridge: Path) -> None:
    episode = next(open_dataset(str(bridge)).episodes("train", paths=["action", "episode_metadata/file_path"]))
    assert isinstance(episode, Episode)
    assert set(episode.steps) == {"action"} and set(episode.metadata) == {"episode_metadata/file_path"}
    with pytest.raises(ValueError, match="has no field 'wrist'"):
        next(open_dataset(str(bridge)).episodes("train", paths=["wrist"]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_costs_one_episode(bridge: Path, bridge_copy: Path, place: float, bit: int) -> None:
    file = next(bridge_copy.glob("*.tfrecord*"))
    data = bytearray(next(bridge.glob("*.tfrecord*")).read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    items = list(open_dataset(str(bridge_copy)).episodes("train"))
    assert sum(isinstance(item, Episode) for item in items) == 24
    (corrupt,) = [item for item in items if isinstance(item, Corrupt)]
    assert corrupt.reason and corrupt.offset <= place * len(data) and items[corrupt.record] is corrupt


def test_a_store_that_nothing_installed_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs://lab/set cannot be opened here: pip install 'rt-pipelines\[gcs\]'"):
        open_folder("gs://lab/set")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1))
def test_truncation_is_accounted_for(bridge: Path, bridge_copy: Path, place: float) -> None:
    data = next(bridge.glob("*.tfrecord*")).read_bytes()
    next(bridge_copy.glob("*.tfrecord*")).write_bytes(data[: int(place * len(data))])
    items = list(open_dataset(str(bridge_copy)).episodes("train"))
    assert len(items) == 25
    whole = [item for item in items if isinstance(item, Episode)]
    assert whole == items[: len(whole)] and len(whole) == pytest.approx(place * 25, abs=1.1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=40)), min_size=1, max_size=6)
)
def test_without_crc_damage_is_still_caught_or_decoded(
    bridge: Path, bridge_copy: Path, changes: list[tuple[float, bytes]]
) -> None:
    data = bytearray(next(bridge.glob("*.tfrecord*")).read_bytes())
    for place, noise in changes:
        start = int(place * len(data))
        data[start : start + len(noise)] = noise[: len(data) - start]
    next(bridge_copy.glob("*.tfrecord*")).write_bytes(data)
    items = list(open_dataset(str(bridge_copy)).episodes("train", check_crc=False))
    assert len(items) >= 25


@pytest.fixture(scope="session")
def as_array_record(bridge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Bridge episodes in TFDS's other format."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = tmp_path_factory.mktemp("array_record") / "1.0.0"
    shutil.copytree(bridge, folder)
    file = next(folder.glob("*.tfrecord*"))
    writer: Any = ArrayRecordWriter(str(folder / file.name.replace("tfrecord", "array_record")), "group_size:1")
    with file.open("rb") as records:
        for record in read_records(records, file.stat().st_size):
            assert isinstance(record, Record)
            writer.write(record.payload)
    writer.close()
    file.unlink()
    return folder


def content(item: Episode | Corrupt) -> dict[str, Any]:
    return {key: value for key, value in asdict(item).items() if key not in ("shard", "offset")}


@pytest.mark.parametrize("split", ["train", "train[5:8]"])
def test_array_record_holds_the_same_episodes(bridge: Path, as_array_record: Path, split: str) -> None:
    ours = [content(item) for item in open_dataset(str(as_array_record)).episodes(split)]
    theirs = [content(item) for item in open_dataset(str(bridge)).episodes(split)]
    np.testing.assert_equal(ours, theirs)


def test_array_record_from_a_bucket(as_array_record: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(as_array_record), "/bucket/1.0.0", recursive=True)
    assert sum(isinstance(item, Episode) for item in open_dataset("memory://bucket/1.0.0").episodes("train[:3]")) == 3
    memory.rm("/", recursive=True)


def test_a_file_in_a_bucket_is_not_asked_for_its_size_again(bridge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(bridge), "/bucket/1.0.0", recursive=True)
    dataset = open_dataset("memory://bucket/1.0.0")
    shards = [*dataset.shards("train"), *dataset.shards("train[20:]")]
    asked: list[str] = []
    monkeypatch.setattr(type(memory), "size", lambda self, path: asked.append(path))
    assert [len(list(dataset.read_shard(shard))) for shard in shards] == [25, 5] and asked == []
    memory.rm("/", recursive=True)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.999])
def test_a_damaged_array_record_is_accounted_for(as_array_record: Path, tmp_path: Path, place: float) -> None:
    shutil.copytree(as_array_record, tmp_path / "1.0.0")
    file = next((tmp_path / "1.0.0").glob("*.array_record*"))
    data = bytearray(file.read_bytes())
    start = int(place * len(data))
    file.write_bytes(data[:start] + bytes(64) + data[start + 64 :])
    items = list(open_dataset(str(tmp_path / "1.0.0")).episodes("train"))
    assert len(items) == 25 and [item.record for item in items] == list(range(25))
    file.write_bytes(data[:start])
    items = list(open_dataset(str(tmp_path / "1.0.0")).episodes("train"))
    assert len(items) == 25 and any(isinstance(item, Corrupt) for item in items)


def test_the_public_buckets_need_no_account() -> None:
    pytest.importorskip("gcsfs", reason="gs:// needs the extra gcs")
    for folder in ("gs://gresearch/robotics/fractal20220817_data/0.1.0", "gs://gdm-robotics-open-x-embodiment/x"):
        filesystem, path = open_folder(folder)
        assert filesystem.storage_options["token"] == "anon" and path == folder.removeprefix("gs://")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=40)), max_size=4),
    cut=st.sampled_from([1, 1, 0.6]),
    max_bytes=st.integers(20_000, 400_000),
    part=st.sampled_from(["train", "train[3:17]"]),
)
def test_the_parts_of_a_shard_are_the_shard(
    bridge: Path, bridge_copy: Path, changes: list[tuple[float, bytes]], cut: float, max_bytes: int, part: str
) -> None:
    data = bytearray(next(bridge.glob("*.tfrecord*")).read_bytes())
    for place, noise in changes:
        start = int(place * len(data))
        data[start : start + len(noise)] = noise[: len(data) - start]
    next(bridge_copy.glob("*.tfrecord*")).write_bytes(data[: int(cut * len(data))])
    dataset = open_dataset(str(bridge_copy))
    (shard,) = dataset.shards(part)
    parts = shard.parts(max_bytes)
    assert len(parts) == min(-(-shard.num_bytes // max_bytes), shard.num_selected)
    only = {"paths": ["action"]}
    divided = [content(item) for run in parts for item in dataset.read_shard(run, **only)]
    np.testing.assert_equal(divided, [content(item) for item in dataset.read_shard(shard, **only)])


def test_refuses_what_is_no_dataset(tmp_path: Path, bridge: Path) -> None:
    plain = tmp_path / "pose_env"
    plain.mkdir()
    (plain / "pose_env_test_data.tfrecord").write_bytes(frame_record(b"an example of no known schema"))
    with pytest.raises(ValueError, match=r"pose_env is not a TFDS dataset, it has no features.json"):
        open_dataset(str(plain))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_dataset(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="is a file"):
        open_dataset(str(bridge / "features.json"))
    with pytest.raises(ValueError, match=r"give its version folder .*bridge_dataset/1.0.0"):
        open_dataset(str(bridge.parent))
    with pytest.raises(ValueError, match=r"has no split 'test': dataset_info.json names train, val"):
        open_dataset(str(bridge)).shards("test")
    with pytest.raises(FileNotFoundError, match=r"bridge_dataset-val.tfrecord-00000-of-00001"):
        open_dataset(str(bridge)).shards("val")
    (tmp_path / "features.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"features.json cannot be read as JSON"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "d-train.tfrecord-00001-of-00002"),
        ("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "d-train.tfrecord-00001-of-00002"),
        ("{SPLIT}_{SHARD_INDEX}.{FILEFORMAT}", "train_00001.tfrecord"),
    ],
)
def test_file_name_templates(bridge: Path, tmp_path: Path, template: str | None, expected: str) -> None:
    shutil.copy(bridge / "features.json", tmp_path)
    split = {"name": "train", "shardLengths": ["1", "2"]} | ({"filepathTemplate": template} if template else {})
    info = {"name": "d", "version": "2.0.0", "fileFormat": "array_record", "splits": [split]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    assert open_dataset(str(tmp_path)).splits["train"][1].name == expected
