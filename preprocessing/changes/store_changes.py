"""Stores that grow, shrink, become one or several: `append`, `delete`, `merge`, `split`, and the log of it.

No shard is written anew that is not cut. Append and delete change a store in place: new files beside the old ones, and
a new manifest in the place of the old one, which is kept; merge and split make new stores of links to the old files.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from preprocessing.changes.assemble import EARLIER, Change, Progress, assemble, quarantine_lines, require_alike
from preprocessing.changes.pieces import Piece
from preprocessing.conversion.resume import claimed, finished, lock_of
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.file_system import FileSystem, file_system_of
from preprocessing.store.json_files import JsonObject, parsed
from preprocessing.store.json_records import read_record
from preprocessing.store.lineage import FINGERPRINT_DIGITS, fingerprint
from preprocessing.store.manifest_file import MANIFEST, PROGRESS
from preprocessing.store.store_manifest import Lineage, StoreManifest


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What a change has made: the store, its manifest's fingerprint and contract, and its counts. `written` counts the
    shards that were written anew, `unchanged` says that there was nothing to do."""

    store: str
    manifest: str
    contract: str
    episodes: int
    steps: int
    shards: int
    written: int
    unchanged: bool = False


def append(store: str, sources: Sequence[str], progress: Progress = _silent) -> Changed:
    """Add the episodes of other stores to `store`. Those whose files it has already are left out."""
    with _alone(store) as first:
        return _appended(first, [EpisodeStore.open(path) for path in sources], progress)


def _appended(first: EpisodeStore, others: Sequence[EpisodeStore], progress: Progress) -> Changed:
    require_alike([first, *others])
    there = {entry.sha256 for entry in first.manifest.shards}
    new = [other for other in others if not {entry.sha256 for entry in other.manifest.shards} <= there]
    for other in new:
        if twice := sorted(
            {entry.sha256: entry.file for entry in other.manifest.shards if entry.sha256 in there}.values()
        ):
            raise ValueError(
                f"{other.root} holds {twice[0]}, whose episodes {first.root} has already: delete them first"
            )
        there |= {entry.sha256 for entry in other.manifest.shards}
    if not new:
        return _changed(first.root, first.manifest, [], unchanged=True)
    pieces = [piece for one in (first, *new) for piece in _all(one)]
    episodes = sum(other.num_episodes for other in new)
    change = Change(kind="append", sentence=f"{episodes} episodes added", parents=(first, *new))
    lines = [line for one in (first, *new) for line in quarantine_lines(one)]
    return _changed(
        first.root, assemble(pieces, first.root, change=change, quarantine=lines, progress=progress), pieces
    )


def delete(
    store: str,
    *,
    episodes: Sequence[int] = (),
    flag: str | None = None,
    expect: str | None = None,
    progress: Progress = _silent,
) -> Changed:
    """Leave out episodes by their number in the store, and those of which a step carries `flag`.

    Raises ValueError if `expect` is given and is not the fingerprint of the store's manifest: numbers may mean others.
    """
    with _alone(store) as opened:
        now = opened.manifest_sha256[:FINGERPRINT_DIGITS]
        if expect is not None and expect != now:
            raise ValueError(
                f"{opened.root} has the manifest {now}, not {expect}: its episodes may have other numbers now"
            )
        return _deleted(opened, set(episodes) | (_flagged(opened, flag) if flag is not None else set()), progress)


def _deleted(opened: EpisodeStore, wanted: set[int], progress: Progress) -> Changed:
    absent = sorted(number for number in wanted if not 0 <= number < opened.num_episodes)
    if absent:
        raise ValueError(f"{opened.root} has no episode {absent[0]}: its episodes are 0 to {opened.num_episodes - 1}")
    if not wanted:
        return _changed(opened.root, opened.manifest, [], unchanged=True)
    if len(wanted) == opened.num_episodes:
        raise ValueError(f"that would delete all {len(wanted)} episodes of {opened.root}: delete the folder instead")
    first, pieces = 0, []
    for shard, entry in enumerate(opened.manifest.shards):
        numbers = range(len(entry.episode_lengths))
        pieces += _part(opened, shard, [number for number in numbers if first + number not in wanted])
        first += len(numbers)
    change = Change(kind="delete", sentence=f"{len(wanted)} episodes deleted", parents=(opened,))
    lines = quarantine_lines(opened)
    return _changed(
        opened.root, assemble(pieces, opened.root, change=change, quarantine=lines, progress=progress), pieces
    )


def merge(out: str, stores: Sequence[str], *, split: str | None = None, progress: Progress = _silent) -> Changed:
    """One store below `out` with the episodes of several, in their order."""
    if split is not None:
        _require_split_name(split)
    opened = [EpisodeStore.open(store) for store in stores]
    if len({store.root for store in opened}) < max(len(opened), 2):
        raise ValueError("merge takes two stores or more, each once")
    require_alike(opened)
    pieces = [piece for store in opened for piece in _all(store)]
    change = Change(kind="merge", sentence=f"{len(opened)} stores merged", parents=tuple(opened))
    lines = [line for store in opened for line in quarantine_lines(store)]
    return _new_store(out, pieces, change, lines, split or opened[0].manifest.split, progress)


def split(
    store: str,
    out: str,
    shares: Mapping[str, float],
    *,
    by: Literal["shards", "episodes"] = "shards",
    seed: int = 0,
    progress: Progress = _silent,
) -> list[Changed]:
    """Stores below `out`, one a name in `shares`, with these shares of the episodes; every episode is in one of them.

    By shards, whole shards are dealt out in an order drawn from `seed`, and at most one is cut at each border; by
    episodes, every episode is drawn, which writes most shards anew. Lines of quarantine go to the first.
    """
    opened = EpisodeStore.open(store)
    counts = _split_counts(shares, opened.num_episodes)
    random = np.random.default_rng(seed)
    lengths = [len(entry.episode_lengths) for entry in opened.manifest.shards]
    if by == "episodes":
        dealt = random.permutation(opened.num_episodes)
    else:
        starts = np.cumsum([0, *lengths]).tolist()
        dealt = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in random.permutation(len(lengths))])
    shard_of = np.repeat(np.arange(len(lengths)), lengths)
    inside = np.concatenate([np.arange(length) for length in lengths])
    made, first = [], 0
    for number, (name, count) in enumerate(counts.items()):
        chosen = np.sort(dealt[first : first + count])
        first += count
        pieces = [
            piece
            for shard in np.unique(shard_of[chosen]).tolist()
            for piece in _part(opened, shard, inside[chosen[shard_of[chosen] == shard]].tolist())
        ]
        sentence = f"{count} of {opened.num_episodes} episodes as {name} (by {by}, seed {seed})"
        change = Change(kind="split", sentence=sentence, parents=(opened,))
        lines = quarantine_lines(opened) if number == 0 else []
        made.append(_new_store(out, pieces, change, lines, name, progress))
    return made


def _require_split_name(name: str) -> None:
    if not re.fullmatch(r"[^\W_][\w.+-]*", name):
        raise ValueError(f"{name!r} cannot be a split: letters, digits and . _ + -, for it names a folder")


def _split_counts(shares: Mapping[str, float], episodes: int) -> dict[str, int]:
    """Whole numbers of episodes that sum to all. Raises ValueError for shares that do not, or leave a split empty."""
    for name in shares:
        _require_split_name(name)
    if len(shares) < 2 or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        given = " ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ValueError(f"shares must be two or more above 0 that sum to 1, got {given}")
    bounds = np.rint(np.cumsum(list(shares.values())) * episodes).astype(int)
    counts = np.diff(bounds, prepend=0).tolist()
    if min(counts) < 1:
        raise ValueError(f"{episodes} episodes cannot be split as {dict(shares)}: one split would be empty")
    return dict(zip(shares, counts, strict=True))


@contextmanager
def _alone(path: str) -> Iterator[EpisodeStore]:
    """The store, as long as no other process changes it in place; object stores cannot lock. Raises ValueError if one
    is at it."""
    root = EpisodeStore.open(path).root
    with lock_of(*file_system_of(root)) as locked:
        if locked(fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
            raise ValueError(f"another rtp store is at work in {root}: wait for it, and run the command again")
        yield EpisodeStore.open(root)


# --- Pieces and results ---


def _all(store: EpisodeStore) -> list[Piece]:
    """Every shard that holds an episode, and those that hold none: conversions write such too."""
    return [Piece(store=store, shard=shard) for shard in range(len(store.shards))]


def _part(store: EpisodeStore, shard: int, episodes: Sequence[int]) -> list[Piece]:
    """The shard with these of its episodes: as it is if they are all, nothing if there is none."""
    if len(episodes) == len(store.manifest.shards[shard].episode_lengths):
        return [Piece(store=store, shard=shard)]
    return [Piece(store=store, shard=shard, episodes=tuple(episodes))] if episodes else []


def _flagged(store: EpisodeStore, flag: str) -> set[int]:
    names = store.manifest.flag_names
    if flag not in names:
        raise ValueError(f"{store.root} has no flag {flag!r}: its flags are {', '.join(names) or 'none'}")
    bit, found, first = np.uint32(names.index(flag)), set[int](), 0
    for shard, entry in enumerate(store.manifest.shards):
        flags = store.read_shard(shard, ["flags"])["flags"].to_numpy()
        episode = np.repeat(np.arange(len(entry.episode_lengths)), entry.episode_lengths)
        found |= {first + int(number) for number in np.unique(episode[(flags >> bit) & 1 == 1])}
        first += len(entry.episode_lengths)
    return found


def _new_store(
    out: str, pieces: Sequence[Piece], change: Change, lines: Sequence[bytes], name: str, progress: Progress
) -> Changed:
    parent = change.parents[0].manifest
    base = str(out).rstrip("/") if "://" in str(out) else str(Path(out).absolute())
    root = f"{base}/{parent.dataset}/{parent.version}/{name}"
    if any(root == store.root.rstrip("/") for store in change.parents):
        raise ValueError(f"{root} is one of the stores that it would be made of: give another OUT")
    filesystem, folder = file_system_of(root)
    lineage = change.lineage()
    settings = {"change": [lineage.change, lineage.sentence, [each.manifest for each in lineage.parents]]}
    names = [f"shard-{number:05d}-of-{len(pieces):05d}.parquet" for number in range(len(pieces))]
    if not filesystem.exists(f"{folder}/{MANIFEST}"):
        try:
            with claimed(filesystem, folder, settings):
                made = assemble(
                    pieces, root, change=change, quarantine=lines, names=names, split=name, progress=progress
                )
            return _changed(root, made, pieces)
        except (OSError, ValueError):
            if not filesystem.exists(f"{folder}/{MANIFEST}"):
                raise
            # another process was quicker with the same work
    made = finished(filesystem, folder, _of_change(filesystem, folder, settings), StoreManifest)
    return _changed(root, made, [], unchanged=True)


def _of_change(filesystem: FileSystem, folder: str, settings: JsonObject) -> JsonObject:
    """The settings of the store at `folder` as they would be if this change had made it."""
    data = parsed(filesystem.cat_file(f"{folder}/{MANIFEST}"), f"{folder}/{MANIFEST}", remedy="delete the store")
    return {**data.get("settings", {}), "change": None, **settings}


def _changed(root: str, manifest: StoreManifest, pieces: Sequence[Piece], *, unchanged: bool = False) -> Changed:
    return Changed(
        store=root,
        manifest=fingerprint(root),
        contract=manifest.contract_id,
        episodes=manifest.counts.episodes_out,
        steps=manifest.counts.steps,
        shards=len(manifest.shards),
        written=sum(piece.episodes is not None for piece in pieces),
        unchanged=unchanged,
    )


# --- Earlier manifests ---


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One manifest of a store: its fingerprint, its counts, and how it came about (None: a conversion)."""

    manifest: str
    episodes: int
    steps: int
    contract: str
    lineage: Lineage | None


def log(store: str) -> list[Entry]:
    """The manifests of the store, the present one first, back to the conversion or to the stores it was made of."""
    opened = EpisodeStore.open(store)
    filesystem, folder = file_system_of(opened.root)
    entries, name, manifest = [], fingerprint(opened.root), opened.manifest
    while True:
        entries.append(
            Entry(
                manifest=name,
                episodes=manifest.counts.episodes_out,
                steps=manifest.counts.steps,
                contract=manifest.contract_id,
                lineage=manifest.lineage,
            )
        )
        if manifest.lineage is None:
            return entries
        name = manifest.lineage.parents[0].manifest
        path = f"{folder}/{EARLIER}/{name}.json"
        if not filesystem.exists(path):
            return entries
        manifest = read_record(StoreManifest, parsed(filesystem.cat_file(path), path, remedy="delete it"))


def prune(store: str) -> list[str]:
    """Remove the files that the present manifest does not list, such as deleted episodes; the names of them."""
    with _alone(store) as opened:
        filesystem, folder = file_system_of(opened.root)
        listed = {opened.manifest.instructions.file, *(entry.file for entry in opened.manifest.shards)}
        names = [path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(folder, detail=False)]
        gone = sorted(
            n for n in names if n.startswith(("shard-", "instructions")) and n.endswith(".parquet") and n not in listed
        )
        for name in gone:
            filesystem.rm(f"{folder}/{name}")
        if filesystem.exists(f"{folder}/{PROGRESS}"):
            filesystem.rm(f"{folder}/{PROGRESS}", recursive=True)
        return gone
