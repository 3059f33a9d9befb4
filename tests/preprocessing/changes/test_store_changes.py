"""Stores changed: what comes out is what a conversion of the same episodes writes, and untouched shards stay."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing.audit import store_audit
from preprocessing.changes import assemble as module
from preprocessing.changes import store_changes
from preprocessing.changes.pieces import Piece
from preprocessing.changes.store_changes import append, delete, log, merge, prune, split
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from tests.support.changed_stores import LENGTHS, NUMBERED, converted, require_equal, rows, seeded


@pytest.fixture
def stores(tmp_path: Path) -> list[str]:
    """The store of all shards, and one of the first two and one of the others."""
    shards = seeded(LENGTHS)
    parts = {"all": shards, "first": shards[:2], "rest": shards[2:]}
    return [converted(tmp_path / name, part) for name, part in parts.items()]


def test_append_equals_a_conversion_of_the_union(stores: list[str]) -> None:
    whole, first, rest = stores
    audited = EpisodeStore.open(first)
    store_audit.save(audited, store_audit.audit(audited))
    before = {path.name: path.stat().st_ino for path in Path(first).glob("shard-*")}
    changed = append(first, [rest])
    assert (changed.shards, changed.written, changed.unchanged) == (4, 0, False)
    require_equal(first, whole)
    now = {path.name: path.stat() for path in Path(first).glob("shard-*")}
    assert {name: now[name].st_ino for name in before} == before
    assert sum(stat.st_nlink == 2 for stat in now.values()) == 2  # the other store's files, linked
    assert store_audit.saved(EpisodeStore.open(first)) is None  # of the manifest before
    assert append(first, [rest]).unchanged


def test_the_log_goes_back_to_the_conversion_and_names_what_was_trained_on(stores: list[str]) -> None:
    _, first, rest = stores
    trained_on = log(first)[0].manifest
    appended = append(first, [rest])
    delete(first, episodes=[0], expect=appended.manifest)
    entries = log(first)
    assert [entry.lineage.change if entry.lineage else "" for entry in entries] == ["delete", "append", ""]
    assert entries[-1].manifest == trained_on and [entry.episodes for entry in entries] == [7, 8, 3]
    with pytest.raises(ValueError, match=f"not {trained_on}"):
        delete(first, episodes=[0], expect=trained_on)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 7), min_size=1, max_size=7))
def test_delete_equals_a_conversion_of_what_is_left(tmp_path_factory: pytest.TempPathFactory, gone: set[int]) -> None:
    folder = tmp_path_factory.mktemp("deleted")
    numbers = iter(range(8))
    left = [[pair for pair in shard if next(numbers) not in gone] for shard in seeded(LENGTHS)]
    store = converted(folder / "all", seeded(LENGTHS))
    untouched = [len(kept) == len(shard) for kept, shard in zip(left, LENGTHS, strict=True)]
    before = {path.name: path.read_bytes() for path in Path(store).glob("shard-*")}
    changed = delete(store, episodes=sorted(gone))
    require_equal(store, converted(folder / "left", [shard for shard in left if shard]), by_number=False)
    opened = EpisodeStore.open(store)
    kept = [entry.file for entry in opened.manifest.shards if entry.file in before]
    assert len(kept) == sum(untouched) and changed.written == sum(map(bool, left)) - sum(untouched)
    for number in range(len(opened.shards)):
        episode = opened.read_shard(number, ["episode"])["episode"].to_numpy()
        lengths = opened.shards[number].episode_lengths
        np.testing.assert_array_equal(episode, np.repeat(np.arange(len(lengths)), lengths))
    assert {path.name for path in Path(store).glob("shard-*")} >= set(before)
    assert set(prune(store)) >= set(before) - set(kept)
    opened.verify()


def test_merge_equals_a_conversion_of_the_union_and_links(stores: list[str], tmp_path: Path) -> None:
    whole, first, rest = stores
    changed = merge(str(tmp_path / "merged"), [first, rest])
    require_equal(changed.store, whole)
    assert all(path.stat().st_nlink == 2 for path in Path(changed.store).glob("shard-*"))
    assert merge(str(tmp_path / "merged"), [first, rest]).unchanged
    with pytest.raises(ValueError, match="holds a finished store made with another change"):
        merge(str(tmp_path / "merged"), [rest, first])


def test_another_process_that_was_quicker_is_no_error(
    stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *parts = stores
    claimed = store_changes.claimed

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(store_changes, "claimed", claimed)
        assert not merge(str(tmp_path / "merged"), parts).unchanged
        return claimed(*arguments)

    monkeypatch.setattr(store_changes, "claimed", slow)
    assert merge(str(tmp_path / "merged"), parts).unchanged
    assert not list((tmp_path / "merged").rglob(".progress"))


@pytest.mark.parametrize("by", ["shards", "episodes"])
def test_split_and_merged_again_nothing_is_lost(stores: list[str], tmp_path: Path, by: Any) -> None:
    whole = stores[0]
    made = split(whole, str(tmp_path / "split"), {"train": 0.5, "val": 0.25, "test": 0.25}, by=by, seed=3)
    assert [change.episodes for change in made] == [4, 2, 2]
    assert by == "episodes" or sum(change.written for change in made) <= 4  # two borders, each cuts one shard in two
    merged = EpisodeStore.open(merge(str(tmp_path / "merged"), [change.store for change in made], split="all").store)
    original = EpisodeStore.open(whole)
    assert merged.num_episodes == original.num_episodes and merged.instruction_texts == original.instruction_texts

    def key(table: pa.Table) -> list[str]:
        return sorted(str(row) for row in table.drop_columns(list(NUMBERED)).to_pylist())

    assert key(rows(merged)) == key(rows(original))
    assert merged.manifest.split == "all" and Path(merged.root).name == "all"


@pytest.mark.parametrize("step", ["placed", "summary_of", "_write_instructions", "_publish"])
def test_a_change_that_is_cut_leaves_the_store_and_is_run_again(
    stores: list[str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole, first, rest = stores
    before = EpisodeStore.open(first).manifest

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, step, cut)
        append(first, [rest])
    EpisodeStore.open(first).verify()
    assert EpisodeStore.open(first).manifest == before
    append(first, [rest])
    require_equal(first, whole)
    assert not [path for path in Path(first).rglob("*") if "partial" in path.name or path.name == ".progress"]


def test_of_two_changes_at_once_the_second_is_refused(stores: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, first, rest = stores
    inner = module._write_instructions

    def meanwhile(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.undo()
        for change in (lambda: delete(first, episodes=[0]), lambda: append(first, [rest]), lambda: prune(first)):
            with pytest.raises(ValueError, match="another rtp store is at work in"):
                change()
        return inner(*arguments, **keywords)

    monkeypatch.setattr(module, "_write_instructions", meanwhile)
    append(first, [rest])
    assert EpisodeStore.open(first).num_episodes == 8


@pytest.mark.parametrize("step", ["placed", "_write_instructions"])
def test_two_changes_at_once_do_not_lose_one_where_nothing_can_lock(
    stores: list[str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    _, first, rest = stores
    inner = getattr(module, step)
    monkeypatch.setattr(store_changes, "lock_of", lambda *_: nullcontext(lambda kind: None))

    def meanwhile(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(module, step, inner)
        delete(first, episodes=[0])
        os.makedirs(Path(first, ".progress"), exist_ok=True)
        return inner(*arguments, **keywords)

    monkeypatch.setattr(module, step, meanwhile)
    with pytest.raises(ValueError, match="changed by another process meanwhile"):
        append(first, [rest])
    assert EpisodeStore.open(first).num_episodes == 2


def test_a_store_changed_after_it_was_opened_is_not_taken_for_the_parent(stores: list[str]) -> None:
    _, first, rest = stores
    opened = EpisodeStore.open(first)
    manifest = Path(first, "manifest.json")
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    parents = (opened, EpisodeStore.open(rest))
    pieces = [Piece(store=store, shard=0) for store in parents]
    change = module.Change(kind="append", sentence="", parents=parents)
    with pytest.raises(ValueError, match="changed by another process meanwhile"):
        module.assemble(pieces, first, change=change, quarantine=[])


def test_what_cannot_be_done_is_one_sentence(stores: list[str], tmp_path: Path) -> None:
    whole, first, rest = stores
    with pytest.raises(ValueError, match="has no episode 8: its episodes are 0 to 7"):
        delete(whole, episodes=[8])
    with pytest.raises(ValueError, match="would delete all 3 episodes"):
        delete(first, episodes=[0, 1, 2])
    with pytest.raises(ValueError, match="has no flag 'nothing'"):
        delete(first, flag="nothing")
    with pytest.raises(ValueError, match="two stores or more, each once"):
        merge(str(tmp_path / "out"), [first, first])
    with pytest.raises(ValueError, match="sum to 1"):
        split(first, str(tmp_path / "out"), {"train": 0.9, "val": 0.2})
    with pytest.raises(ValueError, match="one split would be empty"):
        split(first, str(tmp_path / "out"), {"train": 0.9, "val": 0.1})
    small = ConvertConfig(encoder="hash", workers=0, image_size="8x8")
    other = convert(str(tmp_path / "rest/source/1.0.0"), str(tmp_path / "small"), small).store
    with pytest.raises(ValueError, match=r"the frames 8x8.*only stores of one dataset"):
        append(first, [other])
    assert EpisodeStore.open(first).num_episodes == 3 and not (tmp_path / "out").exists()
    append(first, [rest])
    with pytest.raises(ValueError, match="whose episodes"):
        append(first, [merge(str(tmp_path / "m"), [rest, converted(tmp_path / "new", seeded([[3]], first=9))]).store])
