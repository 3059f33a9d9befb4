"""Checkpoints in a folder: published whole or not at all, on a shared file system or an object store.

    <root>/step-00000100/            one checkpoint; complete once it holds manifest.json
    <root>/.saving-step-00000200/    being written (local roots only); never read, cleared by the next save

Every rank writes its own files; rank 0 publishes when all have done so, on a file system by renaming the folder, on an
object store (any fsspec URL) by uploading the manifest last. A crash at any moment leaves the earlier ones as they are.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.agreement import on_every_rank
from cluster.context import WorkerContext
from cluster.manifest import MANIFEST, FileEntry, Manifest, Metadata, check_entry
from cluster.object_store import is_local, open_files

log = logging.getLogger(__name__)

Write = Callable[[Path], None]
SAVING = ".saving-"
_DOWNLOADS = 8  # files at once


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: a local path or URL, the step (finished updates) and the loop's metadata."""

    path: str
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def metadata(self) -> Metadata:
        return self.manifest.metadata


class CheckpointFolder:
    """The checkpoints of one training. `root` is a path that all nodes share, or an fsspec URL."""

    def __init__(self, root: str | Path) -> None:
        self._files, path = open_files(str(root))
        self.is_local = is_local(self._files)
        self._root = str(Path(path).resolve()) if self.is_local else path.rstrip("/")
        self._kept_by_readers: set[str] = set()

    @property
    def root(self) -> str:
        """The path, or the URL with its scheme."""
        return self._root if self.is_local else str(self._files.unstrip_protocol(self._root))

    # --- Reading ---

    def latest(self) -> Checkpoint | None:
        """The complete checkpoint of the highest step: manifest readable, every file there with its size."""
        return next((checkpoint for step in reversed(self._steps()) if (checkpoint := self.at(step))), None)

    def all(self) -> list[Checkpoint]:
        """Every complete checkpoint, by step."""
        return [checkpoint for step in self._steps() if (checkpoint := self.at(step))]

    def at(self, step: int) -> Checkpoint | None:
        """The complete checkpoint of this step."""
        folder = self._folder(step)
        try:
            manifest = Manifest.from_bytes(self._files.cat_file(f"{folder}/{MANIFEST}"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("checkpoint %s is left out: %s", folder, error)
            return None
        there = {path[len(folder) + 1 :]: info["size"] for path, info in self._listing(folder).items()}
        wrong = [entry.name for entry in manifest.files if there.get(entry.name) != entry.size]
        if wrong:
            log.warning("checkpoint %s is left out: %s missing or of another size", folder, ", ".join(wrong))
            return None
        return Checkpoint(path=self._path(step), manifest=manifest)

    def damaged(self) -> list[str]:
        """Paths of those that were published and are not complete any more. A crash leaves none: it writes the manifest
        last and removes it first."""
        published = [step for step in self._steps() if self._files.exists(f"{self._folder(step)}/{MANIFEST}")]
        return [self._path(step) for step in published if self.at(step) is None]

    def fetch(self, checkpoint: Checkpoint, local: Path, *, rank: int = 0, world_size: int = 1) -> Path:
        """A local folder with the checkpoint's files: its own path on a file system, else a copy below `local`.

        Raises ValueError if a file's content differs from its digest. On a file system, which all ranks see, each
        rank reads its share of the files for that. Safe to call from several processes of a node at once.
        """
        if self.is_local:
            for entry in checkpoint.manifest.files[rank::world_size]:
                check_entry(entry, Path(checkpoint.path), of=checkpoint.path)
            return Path(checkpoint.path)
        target = local / PurePosixPath(checkpoint.path).name
        if not target.is_dir():
            local.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=local))
            self._download(checkpoint, partial)
            try:
                partial.rename(target)
            except OSError:  # another process of this node was first
                shutil.rmtree(partial)
        return target

    def fetch_on_every_rank(self, checkpoint: Checkpoint, local: Path, context: WorkerContext) -> Path:
        """`fetch` of a checkpoint that rank 0 chose; collective. Each rank looks for it by its name alone.

        A rank's listing of the folder may be older than the checkpoint, on a shared disk that caches listings. If a
        rank does not find it, or finds another one of this step, every rank raises FileNotFoundError or ValueError.
        From an object store it is copied once per node, below the `local` of one of its ranks, which must stay until
        all have read it.
        """
        if self.is_local:
            return on_every_rank(context, self._fetch_by_name, checkpoint, local, context)[context.rank]
        nodes = context.gather(socket.gethostname())
        first = nodes.index(nodes[context.rank])
        is_first = first == context.rank
        copies = on_every_rank(context, lambda: self._fetch_by_name(checkpoint, local, context) if is_first else local)
        return on_every_rank(context, self._copy_of_node, checkpoint, copies[first], local, context)[context.rank]

    def _copy_of_node(self, checkpoint: Checkpoint, copy: Path, local: Path, context: WorkerContext) -> Path:
        """The copy that another rank of this node made; one of our own where two machines have the same name."""
        if (copy / MANIFEST).is_file() and (copy / MANIFEST).read_bytes() == checkpoint.manifest.to_bytes():
            return copy
        return self._fetch_by_name(checkpoint, local, context)

    def _fetch_by_name(self, checkpoint: Checkpoint, local: Path, context: WorkerContext) -> Path:
        step = checkpoint.step
        folder = self._folder(checkpoint.step)
        remedy = "give an --output folder that all workers share, and --resume"
        try:
            manifest = Manifest.from_bytes(self._files.cat_file(f"{folder}/{MANIFEST}"))
        except FileNotFoundError:
            manifest = None
        names = [entry.name for entry in checkpoint.manifest.files if self.is_local]
        if manifest is None or not all(Path(folder, name).is_file() for name in names):
            raise FileNotFoundError(
                f"rank {context.rank} does not find the checkpoint of step {step} in {self.root}, from which rank 0 "
                f"continues: {remedy}"
            )
        if manifest != checkpoint.manifest:
            raise ValueError(
                f"rank {context.rank} finds another checkpoint of step {step} in {self.root} than the one from which "
                f"rank 0 continues: {remedy}"
            )
        own = Checkpoint(path=self._path(step), manifest=manifest)
        return self.fetch(own, local, rank=context.rank, world_size=context.world_size)

    # --- Writing ---

    def save(
        self,
        step: int,
        write: Write,
        context: WorkerContext,
        metadata: Metadata,
        keep_last: int,
        keep_best_by: str | None = None,
    ) -> None:
        """Publish a checkpoint of this step; collective.

        Each rank's `write` puts its files into an empty folder of its own; names must differ between ranks.
        Afterwards only the `keep_last` newest remain, and the one with the lowest metadata[keep_best_by].
        Raises OSError on every rank if any rank could not write, and ValueError if the step was published before.
        """
        if keep_last < 1:
            raise ValueError(f"keep_last = {keep_last}: at least 1 checkpoint must be kept")
        _agree(context, step, self._prepare, step, on_rank_0=True)
        try:
            entries = _agree(context, step, self._write_own, step, write, context)
            _agree(context, step, self._publish, Manifest(step=step, metadata=metadata, files=entries), on_rank_0=True)
        except (ValueError, OSError):
            if context.rank == 0 and self.is_local:
                shutil.rmtree(self._saving(step), ignore_errors=True)  # gives a full disk its room back
            raise
        _agree(context, step, self._prune, keep_last, keep_best_by, on_rank_0=True)

    def _prepare(self, step: int) -> tuple[FileEntry, ...]:
        if self.at(step) is not None:
            raise ValueError(f"{self._folder(step)} was published before: resume from it, or save in another folder")
        for leftover in self._leftovers(step):
            self._remove_if_free(leftover)
        self._move_aside(self._folder(step))
        self._move_aside(str(self._saving(step)))
        if self.is_local:
            os.makedirs(self._saving(step))
        return ()

    def _write_own(self, step: int, write: Write, context: WorkerContext) -> tuple[FileEntry, ...]:
        """Write and, on an object store, upload this rank's files."""
        if self.is_local:
            own = self._saving(step) / f"rank-{context.rank:05d}"
            own.mkdir()
            entries = _written(write, own)
            for entry in entries:
                target = self._saving(step) / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                (own / entry.name).rename(target)
            shutil.rmtree(own)
            return entries
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as own:
            entries = _written(write, Path(own))
            for entry in entries:
                self._files.put_file(f"{own}/{entry.name}", f"{self._folder(step)}/{entry.name}")
        return entries

    def _publish(self, manifest: Manifest) -> tuple[FileEntry, ...]:
        names = [entry.name for entry in manifest.files]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several ranks wrote {', '.join(twice)}: each file belongs to one rank")
        if not self.is_local:
            self._files.pipe_file(f"{self._folder(manifest.step)}/{MANIFEST}", manifest.to_bytes())
            return ()
        saving = self._saving(manifest.step)
        for entry in manifest.files:
            if not (saving / entry.name).is_file():
                raise OSError(f"{entry.name} of another node is not in {self._root}: the nodes must share this folder")
        (saving / MANIFEST).write_bytes(manifest.to_bytes())
        _sync(saving / MANIFEST)
        for folder in [saving, *(path for path in saving.rglob("*") if path.is_dir())]:
            _sync(folder)
        saving.rename(self._folder(manifest.step))
        _sync(Path(self._root))
        return ()

    def _prune(self, keep_last: int, keep_best_by: str | None) -> tuple[FileEntry, ...]:
        complete = self.all()
        kept = {checkpoint.step for checkpoint in complete[-keep_last:]}
        scored = [(c.metadata[keep_best_by], c.step) for c in complete if keep_best_by and keep_best_by in c.metadata]
        if scored:
            kept.add(min(scored)[1])
        for checkpoint in complete:
            if checkpoint.step not in kept:
                self._remove_if_free(self._folder(checkpoint.step))
        return ()

    # --- Places ---

    def _folder(self, step: int) -> str:
        return f"{self._root}/step-{step:08d}"

    def _path(self, step: int) -> str:
        """The folder of a step, as a URL with its scheme if it is not local."""
        return self._folder(step) if self.is_local else str(self._files.unstrip_protocol(self._folder(step)))

    def _saving(self, step: int) -> Path:
        return Path(self._root, f"{SAVING}step-{step:08d}")

    def _names(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            return sorted(PurePosixPath(path).name for path in self._files.ls(self._root, detail=False))
        except FileNotFoundError:
            return []

    def _steps(self) -> list[int]:
        return sorted(int(match[1]) for name in self._names() if (match := re.fullmatch(r"step-(\d{8,})", name)))

    def _leftovers(self, step: int) -> list[str]:
        """The folders that a crash left: half-saved ones, those without a manifest, and a broken one of this step."""
        saving = [f"{self._root}/{name}" for name in self._names() if name.startswith(SAVING)]
        folders = [(number, self._folder(number)) for number in self._steps()]
        return saving + [f for n, f in folders if n == step or not self._files.exists(f"{f}/{MANIFEST}")]

    def _listing(self, folder: str) -> dict[str, dict[str, object]]:
        self._files.invalidate_cache()
        return self._files.find(folder, detail=True)

    def _remove(self, folder: str) -> None:
        """Removes the manifest first, so that an interrupted removal leaves no checkpoint."""
        if self._files.exists(f"{folder}/{MANIFEST}"):
            self._files.rm_file(f"{folder}/{MANIFEST}")
        if self._files.exists(folder):  # an object store has no empty folders
            self._files.rm(folder, recursive=True)

    def _remove_if_free(self, folder: str) -> None:
        """As `_remove`. What somebody reads over NFS leaves a .nfs* file until then: that must not end a training."""
        try:
            self._remove(folder)
        except OSError as error:
            if folder not in self._kept_by_readers:
                log.warning("%s could not be removed (%s): it is tried again at the next checkpoint", folder, error)
            self._kept_by_readers.add(folder)

    def _move_aside(self, folder: str) -> None:
        """Where a folder that could not be removed stands in the way of a new one, it is given a leftover's name."""
        if self.is_local and os.path.exists(folder):
            os.rename(folder, f"{self._root}/{SAVING}removed-{uuid.uuid4().hex}")

    def _download(self, checkpoint: Checkpoint, target: Path) -> None:
        folder = self._folder(checkpoint.step)

        def download(entry: FileEntry) -> None:
            (target / entry.name).parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(f"{folder}/{entry.name}", str(target / entry.name))
            check_entry(entry, target, of=checkpoint.path)

        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(download, checkpoint.manifest.files))
        (target / MANIFEST).write_bytes(checkpoint.manifest.to_bytes())


def _agree(
    context: WorkerContext, step: int, act: Callable[..., tuple[FileEntry, ...]], *args: object, on_rank_0: bool = False
) -> tuple[FileEntry, ...]:
    """Run one stage of a save on every rank, or on rank 0 alone; if it fails anywhere, raise everywhere."""

    def stage() -> tuple[FileEntry, ...]:
        if on_rank_0 and context.rank != 0:
            return ()
        try:
            return act(*args)
        except Exception as error:
            kind = ValueError if isinstance(error, ValueError) else OSError
            message = f"the checkpoint of step {step} was not saved: {_reason(error)} (rank {context.rank})"
            raise kind(message) from error

    return tuple(entry for own in on_every_rank(context, stage) for entry in own)


def _reason(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or os.strerror(errno.ENOSPC) in str(error):  # safetensors only passes the words on
        return f"the disk is full ({error}): free space or keep fewer checkpoints; earlier ones are intact"
    return str(error) or repr(error)


def _written(write: Write, folder: Path) -> tuple[FileEntry, ...]:
    """Write into the empty folder; its files, on disk for good, with their digests."""
    write(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        _sync(path)
    return tuple(FileEntry.of(path, folder) for path in paths)


def _sync(path: Path) -> None:
    """Force a file or a folder's entries to disk: the manifest must not outlive the files it vouches for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
