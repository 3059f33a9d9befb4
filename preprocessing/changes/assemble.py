"""Pieces of finished stores -> one store: files first, then instruction table and quarantine, the manifest last.

The manifest is what a conversion of all its episodes at once would have written (statistics, contract, instructions),
but for the names of files and the settings, and says which manifests it was made from and by what change. In a store
that is changed in place, files of earlier manifests stay, and those manifests too, under `manifests/FINGERPRINT.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.changes.pieces import Piece, PieceSummary, placed, summary_of
from preprocessing.store.episode_store import INSTRUCTION_SCHEMA, QUARANTINE, EpisodeStore, atomic_write, fixed_lists
from preprocessing.store.file_system import FileSystem, file_system_of
from preprocessing.store.json_files import JsonObject
from preprocessing.store.lineage import FINGERPRINT_DIGITS
from preprocessing.store.manifest_file import MANIFEST, PROGRESS
from preprocessing.store.shard_files import with_retries
from preprocessing.store.statistics import Moments, tiny_ranges
from preprocessing.store.store_manifest import (
    EpisodeCounts,
    InstructionsFile,
    Lineage,
    ParentStore,
    ShardEntry,
    StoreManifest,
    StoreStatistics,
)
from rt_models.spec import ActionStatistics, Contract

EARLIER = "manifests"
_AT_ONCE = 8
Progress = Callable[[int, int], None]
"""Called with shards done and in all."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is done to stores, in words for the manifest: `kind` is append, delete, merge or split."""

    kind: str
    sentence: str
    parents: tuple[EpisodeStore, ...]

    def lineage(self) -> Lineage:
        parents = tuple(
            ParentStore(store=store.root, manifest=store.manifest_sha256[:FINGERPRINT_DIGITS]) for store in self.parents
        )
        return Lineage(change=self.kind, sentence=self.sentence, parents=parents)


def require_alike(stores: Sequence[EpisodeStore]) -> None:
    """Raise ValueError naming the first thing in which stores differ that one store has once."""
    first = _alike(stores[0])
    for store in stores[1:]:
        other = _alike(store)
        for name, value in first.items():
            if other[name] != value:
                raise ValueError(
                    f"{store.root} has {name} {_short(other[name])}, {stores[0].root} has {_short(value)}: only stores "
                    f"of one dataset that were preprocessed alike become one"
                )


def _alike(store: EpisodeStore) -> JsonObject:
    manifest, contract = store.manifest, store.contract
    return {
        "the dataset": manifest.dataset,
        "the version": manifest.version,
        "the spec": manifest.settings.get("spec"),
        "the control rate": manifest.control_hz,
        "the encoder": manifest.encoder,
        "the frames": str(contract.image),
        "the simulator's settings": store.dataset.simulated,
        "the action space": contract.action.name,
        "the units": store.dataset.units,
        "the dimensions": store.dataset.action_mask,
        "the gripper": manifest.gripper,
        "the cameras": manifest.cameras,
        "the flags": manifest.flag_names,
        "the state": (manifest.proprio.names, manifest.proprio.units),
        "the cameras' frames": manifest.camera_recipes,
        "the source's fields": manifest.source_fields,
        "the rows of a group": manifest.row_group_rows,
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def assemble(
    pieces: Sequence[Piece],
    root: str,
    *,
    change: Change,
    quarantine: Sequence[bytes],
    names: Sequence[str] | None = None,
    split: str | None = None,
    progress: Progress = lambda done, total: None,
) -> StoreManifest:
    """Make the store at `root` of these pieces, with these lines of quarantine; in place if it is the first parent's.

    `names` are its files, by default such as follow from their content. Whatever is missing is made, so that a change
    that was interrupted is run again.
    """
    filesystem, folder = file_system_of(root)
    store, lineage = change.parents[0], change.lineage()
    in_place = folder.rstrip("/") == file_system_of(store.root)[1].rstrip("/")
    temporary = f"{folder}/{PROGRESS}"
    filesystem.makedirs(temporary, exist_ok=True)
    files = list(names) if names is not None else [_file(piece, store if in_place else None) for piece in pieces]

    def one(number: int) -> tuple[ShardEntry, PieceSummary]:
        return placed(pieces[number], root, files[number], temporary=temporary), summary_of(pieces[number])

    done = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for result in pool.map(one, range(len(pieces))):
            done.append(result)
            progress(len(done), len(pieces))
    table = _instruction_table(change.parents, np.unique(np.concatenate([summary.instructions for _, summary in done])))
    instructions = _write_instructions(filesystem, folder, table, in_place=in_place)
    actions, states = _statistics([summary for _, summary in done], store.contract.action.size)
    entries = tuple(entry for entry, _ in done)
    manifest = _with_statistics(
        replace(
            store.manifest,
            split=split or store.manifest.split,
            counts=_counts(entries, quarantined=len(quarantine)),
            proprio=replace(store.manifest.proprio, statistics=states),
            instructions=instructions,
            shards=entries,
            settings=_settings(store, lineage, split),
            remarks=tuple(dict.fromkeys(remark for parent in change.parents for remark in parent.manifest.remarks)),
            lineage=lineage,
        ),
        actions,
    )
    _publish(filesystem, folder, manifest, quarantine, lineage if in_place else None)
    return manifest


def _file(piece: Piece, store: EpisodeStore | None) -> str:
    """The name of a piece's file; whole shards of `store` have one already."""
    return piece.entry.file if piece.store is store and piece.episodes is None else piece.own_name()


def _statistics(pieces: Sequence[PieceSummary], action_size: int) -> tuple[ActionStatistics, ActionStatistics | None]:
    """Of the actions and of the states of all pieces, merged in their order as a conversion merges its shards."""
    actions = Moments.empty(action_size)
    states: Moments | None = Moments.empty(0)
    for each in pieces:
        actions = actions.merged(each.moments)
        states = None if states is None or each.state_moments is None else states.merged(each.state_moments)
    return actions.statistics(), None if states is None else states.statistics()


def _counts(entries: Sequence[ShardEntry], *, quarantined: int) -> EpisodeCounts:
    episodes, steps = sum(len(entry.episode_lengths) for entry in entries), sum(entry.rows for entry in entries)
    return EpisodeCounts(
        episodes_in=episodes + quarantined, episodes_out=episodes, quarantined=quarantined, steps=steps
    )


def _settings(store: EpisodeStore, lineage: Lineage, split: str | None) -> JsonObject:
    """Those of the first parent, with what tells this store from a conversion."""
    parents = [parent.manifest for parent in lineage.parents]
    settings = {**store.manifest.settings, "change": [lineage.change, lineage.sentence, parents]}
    return {**settings, "split": split} if split else settings


def _with_statistics(manifest: StoreManifest, statistics: ActionStatistics) -> StoreManifest:
    """The manifest with these statistics wherever they stand; a neutral value that was a mean follows it."""
    dataset, contract = manifest.contract.datasets[0], manifest.contract
    meanings = tuple(
        replace(meaning, neutral=now) if meaning.neutral == before else meaning
        for meaning, before, now in zip(dataset.meanings, dataset.statistics.mean, statistics.mean, strict=False)
    )
    changed: Contract = replace(contract, datasets=(replace(dataset, statistics=statistics, meanings=meanings),))
    names = contract.action.names
    rows = {name: getattr(statistics, name) for name in ("count", "mean", "std", "minimum", "maximum", "q01", "q99")}
    return replace(
        manifest,
        contract=changed,
        contract_id=changed.id,
        statistics=StoreStatistics(
            **rows,
            names=names,
            units=manifest.statistics.units,
            hardly_vary=tiny_ranges(statistics, names, dataset.action_mask),
        ),
    )


# --- Instructions ---


def _instruction_table(parents: Sequence[EpisodeStore], used: np.ndarray) -> pa.Table:
    """The rows in use, by id; of one that several parents have the first one's."""
    rows: dict[int, tuple[str, np.ndarray]] = {}
    for store in parents:
        for number, text, vector in zip(
            store.instruction_ids.tolist(), store.instruction_texts, store.embeddings, strict=True
        ):
            rows.setdefault(number, (text, vector))
    ids = used.tolist()
    missing = [number for number in ids if number not in rows]
    if missing:
        raise ValueError(f"instruction {missing[0]} is in no table of {parents[0].root}: is the store whole?")
    return pa.table(
        [
            pa.array(ids, pa.int64()),
            pa.array([rows[number][0] for number in ids], pa.string()),
            pa.array([parents[0].manifest.encoder] * len(ids), pa.string()),
            fixed_lists(np.stack([rows[number][1] for number in ids])),
        ],
        schema=INSTRUCTION_SCHEMA,
    )


def _write_instructions(filesystem: FileSystem, folder: str, table: pa.Table, *, in_place: bool) -> InstructionsFile:
    """In a store that is changed in place under a name of its own: readers of the earlier manifest keep theirs."""
    ids = table["id"].to_numpy()
    mark = hashlib.sha256(ids.tobytes()).hexdigest()[:16]
    name = f"instructions-{mark}.parquet" if in_place else "instructions.parquet"
    with atomic_write(filesystem, f"{folder}/{name}", temporary=f"{folder}/{PROGRESS}") as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")
    return InstructionsFile(file=name, rows=table.num_rows, sha256=file.sha256)


# --- Publishing ---


def quarantine_lines(store: EpisodeStore) -> list[bytes]:
    """The lines of quarantine that the store's manifest counts; a change that was interrupted may have left more."""
    path = f"{file_system_of(store.root)[1]}/{QUARANTINE}"
    lines = with_retries(lambda: store.filesystem.cat_file(path), what=path).splitlines()
    return lines[: store.manifest.counts.quarantined]


def _publish(
    filesystem: FileSystem, folder: str, manifest: StoreManifest, quarantine: Sequence[bytes], before: Lineage | None
) -> None:
    """Quarantine and manifest. `before` is the lineage of a store changed in place, whose manifest is kept.

    Raises ValueError if another process has changed the store meanwhile.
    """
    temporary = f"{folder}/{PROGRESS}"
    if before is not None:
        blob = filesystem.cat_file(f"{folder}/{MANIFEST}")
        if hashlib.sha256(blob).hexdigest()[:16] != before.parents[0].manifest:
            raise ValueError(f"{folder} was changed by another process meanwhile: run the command again")
        filesystem.makedirs(f"{folder}/{EARLIER}", exist_ok=True)
        with atomic_write(
            filesystem, f"{folder}/{EARLIER}/{before.parents[0].manifest}.json", temporary=temporary
        ) as kept:
            kept.write(blob)
    with atomic_write(filesystem, f"{folder}/{QUARANTINE}", temporary=temporary) as file:
        file.write(b"".join(line + b"\n" for line in quarantine))
    with atomic_write(filesystem, f"{folder}/{MANIFEST}", temporary=temporary) as file:
        file.write(manifest.to_bytes())
    with suppress(FileNotFoundError):  # an object store has no empty folders
        filesystem.rm(temporary, recursive=True)
