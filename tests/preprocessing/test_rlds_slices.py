"""Slices of splits: TFDS's own reading of them is the other side, and slices that meet lose and repeat nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core import splits as tfds_splits

from preprocessing.convert import ConvertConfig, convert
from preprocessing.rlds import Corrupt, RldsDataset, SourceShard, open_dataset
from preprocessing.store.episode_store import EpisodeStore

SHARDS = ([2, 3, 2], [4], [3, 2])  # episode lengths; 6 records in 3 files


def dataset(lengths: list[int]) -> RldsDataset:
    shards = tuple(SourceShard(path=f"/{i}", name=str(i), num_records=n) for i, n in enumerate(lengths))
    return RldsDataset(folder="here", name="d", version="1.0.0", features={}, splits={"train": shards})


LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=5)


@given(
    lengths=LENGTHS,
    percent=st.booleans(),
    bounds=st.tuples(*[st.none() | st.integers(-120, 120)] * 2).filter(lambda bounds: bounds != (None, None)),
)
def test_agrees_with_tensorflow_datasets(lengths: list[int], percent: bool, bounds: tuple[int | None, ...]) -> None:
    first, stop = ("" if b is None else f"{b}{'%' * percent}" for b in bounds)
    text, total = f"train[{first}:{stop}]", sum(lengths)
    theirs, infos = None, {"train": SimpleNamespace(num_examples=total, shard_lengths=lengths)}
    try:
        (part,) = tfds_splits.ReadInstruction.from_spec(text).to_absolute(infos)  # type: ignore[attr-defined]
        theirs = (part.from_ or 0, total if part.to is None else part.to)
    except ValueError:
        pass
    if theirs is None or theirs[0] >= theirs[1]:
        with pytest.raises(ValueError, match="asks for records"):
            dataset(lengths).split_slice(text)
    else:
        ours = dataset(lengths).split_slice(text)
        assert (ours.first, ours.stop) == theirs


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("train", "train"),
        ("train[:]", "train"),
        ("train[:100%]", "train"),
        ("train[:3]", "train-0-3"),
        ("train[0:-3]", "train-0-3"),
        ("train[:50%]", "train-0-3"),
        ("train[12.5%:50%]", "train-1-3"),
    ],
)
def test_a_slice_has_one_name_however_it_is_written(text: str, name: str) -> None:
    assert dataset([3, 1, 2]).split_slice(text).name == name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("val[:3]", "no split 'val': dataset_info.json names train$"),
        ("train[3]", r"no split 'train\[3\]': .*a slice is written train\[:1000\] or train\[90%:\]"),
        ("train[:3]+train[4:]", "a slice is written"),
        ("train[1%:2]", "a slice is written"),
        ("train[4:4]", "asks for records 4 to 4, split 'train' has 6"),
        ("train[:7]", "asks for records 0 to 7, split 'train' has 6"),
        ("train[:101%]", "101% asks for records beyond the split's 100%"),
    ],
)
def test_slices_that_cannot_be(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataset([3, 1, 2]).split_slice(text)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.sets(st.integers(1, 5)),
    damage=st.none() | st.floats(0, 1, exclude_max=True),
    state=st.sampled_from(["cut off", "as long", "twice as long"]),
)
def test_slices_that_meet_give_every_record_once(
    make_bridge: Callable[..., Path], tmp_path: Path, cuts: set[int], damage: float | None, state: str
) -> None:
    source = tmp_path / "source/1.0.0"
    if not source.exists():
        make_bridge(*SHARDS)
    file, intact = next(source.glob("*-00000-of-*")), tmp_path / "intact"
    intact.write_bytes(intact.read_bytes() if intact.exists() else file.read_bytes())
    data = bytearray(intact.read_bytes())
    if damage is not None:
        data[int(damage * len(data))] ^= 4
        data = data[: int(damage * len(data))] if state == "cut off" else data
    file.write_bytes(data + intact.read_bytes() if state == "twice as long" else data)
    opened = open_dataset(str(source))
    whole = [(item.shard, item.record, item.offset) for item in opened.episodes("train")]
    edges = [0, *sorted(cuts), 6]
    parts = [opened.episodes(f"train[{a}:{b}]") for a, b in itertools.pairwise(edges)]
    assert [(item.shard, item.record, item.offset) for part in parts for item in part] == whole


def test_a_file_outside_the_slice_is_not_needed(make_bridge: Callable[..., Path]) -> None:
    source = make_bridge(*SHARDS)
    next(source.glob("*-00002-of-*")).unlink()
    opened = open_dataset(str(source))
    assert [item.shard[-14:-9] for item in opened.episodes("train[1:4]")] == ["00000", "00000", "00001"]
    with pytest.raises(FileNotFoundError, match="lacks its file"):
        opened.shards("train[1:5]")


def test_records_that_a_cut_file_lacks_are_reported_in_their_slice(make_bridge: Callable[..., Path]) -> None:
    source = make_bridge(*SHARDS)
    next(source.glob("*-00000-of-*")).write_bytes(b"")
    (item,) = open_dataset(str(source)).episodes("train[1:2]")
    assert isinstance(item, Corrupt) and (item.record, item.reason[:7]) == (1, "missing")


def test_conversion_of_slices(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source, out = str(make_bridge(*SHARDS)), str(tmp_path / "out")
    first = convert(source, out, ConvertConfig(workers=0, split="train[:2]"))
    rest = convert(source, out, ConvertConfig(workers=0, split="train[2:]"))
    assert (first.split, first.episodes_in, first.steps) == ("train-0-2", 2, 5)
    assert (rest.split, rest.episodes_in, rest.steps) == ("train-2-6", 4, 11)
    assert convert(source, out, ConvertConfig(workers=0, split="train[:-4]")).shards_converted == 0
    store = EpisodeStore.open(out, split="train-2-6")
    assert json.loads(Path(store.root, "manifest.json").read_text())["split"] == "train-2-6"
    assert [shard.rows for shard in store.shards] == [2, 4, 5]
    limited = convert(source, str(tmp_path / "limited"), ConvertConfig(workers=0, split="train[2:]", limit=2))
    assert (limited.episodes_in, limited.steps) == (2, 6)
