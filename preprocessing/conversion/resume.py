"""What stands in a store's folder before a conversion: nothing, the same conversion begun or finished, or another.

A finished store is never touched. What was interrupted is continued by the same conversion alone, and another one is
refused lest hours of work vanish. A refusal leaves nothing behind, so that its remedy can be followed: another setting,
a mended spec, a source downloaded again. Where nothing can lock, others may be at the same work unseen: there a refusal
is noted, and the next run begins anew. Files that no conversion is known to have written stay as they are.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from preprocessing.store.episode_store import INSTRUCTIONS, QUARANTINE, atomic_write
from preprocessing.store.file_system import FileSystem, file_system_of, is_local
from preprocessing.store.json_files import JsonObject, parsed, taken_apart
from preprocessing.store.json_records import read_record
from preprocessing.store.manifest_file import MANIFEST, PROGRESS, read_manifest
from preprocessing.store.store_manifest import StoreManifest, WebManifest

M = TypeVar("M", StoreManifest, WebManifest)

_SETTINGS = "settings.json"
_ENDED = "ended.json"  # the sentence that a conversion was refused with, where its work could not be removed
_FOLDERS = "folders.json"  # how many folders were made for the store, its own and those above
_DECISIONS = "decisions.parquet"  # of a filter
_FILTERED, _CHANGED = "parent", "change"  # settings that only rtp filter has, and rtp store
_OF_STORE = re.compile(
    r"shard-\d{5,}-of-\d{5,}\.parquet|" + "|".join(re.escape(name) for name in (INSTRUCTIONS, QUARANTINE, _DECISIONS))
)
_OF_PROGRESS = re.compile(r"(settings|ended|folders)\.json|\d{5,}(-[a-z]+)?\.(json|parquet)|[0-9a-f]{32}\.partial")


def made_once(filesystem: FileSystem, root: str, settings: JsonObject, kind: type[M], make: Callable[[], M]) -> M:
    """What `make` makes; or what is there already, also if another process was quicker with the same work."""
    if not filesystem.exists(f"{root}/{MANIFEST}"):
        try:
            return make()
        except (OSError, ValueError):
            if not filesystem.exists(f"{root}/{MANIFEST}"):
                raise
    return finished(filesystem, root, settings, kind)


def finished(filesystem: FileSystem, root: str, settings: JsonObject, kind: type[M]) -> M:
    """The manifest of the finished store at `root`. Raises ValueError if it is another store, or files are amiss."""
    data = read_manifest(filesystem, root).data
    if difference := _difference(data.get("settings", {}), settings):
        raise ValueError(f"{root} holds a finished store made with {difference}: delete it or give another OUT")
    again = f"delete {root} and run {command_of(settings)} again"
    with taken_apart(f"{root}/{MANIFEST}", remedy=again):
        manifest = read_record(kind, data)
    sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in filesystem.ls(root, detail=True)}
    for shard in manifest.shards:
        if sizes.get(shard.file) != shard.bytes:
            raise ValueError(f"{root}/{shard.file} is missing or cut: {again}")
    return manifest


@contextmanager
def claimed(filesystem: FileSystem, root: str, settings: JsonObject) -> Iterator[None]:
    """Around a conversion: begin it, or continue what was begun with the same settings.

    A ValueError in it leaves nothing behind, unless others are still at it: whatever mends it changes what is written.
    So does an OSError before anything is written. Raises ValueError if another conversion was interrupted, or works, or
    files lie there that are not known to be a conversion's; FileExistsError if the store was finished meanwhile.
    """
    made = _missing_folders(filesystem, root)
    try:
        filesystem.makedirs(f"{root}/{PROGRESS}", exist_ok=True)
    except OSError as error:
        raise OSError(f"{root} cannot be made ({error.strerror or error}): give another OUT") from error
    with lock_of(filesystem, root) as locked:
        alone = locked(fcntl.LOCK_EX | fcntl.LOCK_NB) is not False
        if not alone:
            locked(fcntl.LOCK_SH)
        if filesystem.exists(f"{root}/{MANIFEST}"):
            _remove_if_empty(filesystem, f"{root}/{PROGRESS}")
            raise FileExistsError(f"{root} was finished by another process meanwhile: run the same command again")
        _make_room(filesystem, root, settings, made, alone=alone)
        locked(fcntl.LOCK_SH)  # others that do the same work may join: they end with the same bytes
        try:
            yield
        except (ValueError, OSError) as error:
            with suppress(OSError):
                taken = locked(fcntl.LOCK_EX | fcntl.LOCK_NB)
                if taken is not False and _leaves_nothing(filesystem, root, error):
                    if taken:
                        folders = _folders_made(filesystem, root)
                        _remove(filesystem, root)
                        _remove_empty(root, folders)
                    elif isinstance(error, ValueError):
                        _write(filesystem, f"{root}/{PROGRESS}", _ENDED, {"error": str(error)})
            raise


def _leaves_nothing(filesystem: FileSystem, root: str, error: ValueError | OSError) -> bool:
    """Whether nothing in `root` is worth keeping after `error`. An object store, which may be away, is not asked."""
    if isinstance(error, ValueError):
        return not filesystem.exists(f"{root}/{MANIFEST}")  # else another process was quicker with the same work
    written = [*os.listdir(root), *os.listdir(f"{root}/{PROGRESS}")] if is_local(filesystem) else ["unknown"]
    return set(written) <= {PROGRESS, _SETTINGS, _FOLDERS}


def require_claimed(root: str, settings: JsonObject) -> None:
    """On a node that works for a conversion: raise OSError unless it sees the folder in which that was begun."""
    filesystem, folder = file_system_of(root)
    path = f"{folder}/{PROGRESS}/{_SETTINGS}"
    try:
        found = parsed(filesystem.cat_file(path), path, remedy=f"delete it and run {command_of(settings)} again")
    except FileNotFoundError:
        found = None
    if found is None or _difference(found, json.loads(json.dumps(settings))):
        raise OSError(
            f"the node {socket.gethostname()} does not find the conversion that was begun in {root}: every node must "
            f"see SOURCE and OUT, so give folders on a shared disk or URLs (s3://, gs://)"
        )


def without_verdict(step: Callable[[], None]) -> None:
    """A step of a conversion that says nothing of the data, such as to reach Ray: its ValueError becomes an OSError,
    which is not noted, so that the work done is continued."""
    try:
        step()
    except ValueError as error:
        raise OSError(str(error)) from error


def _make_room(filesystem: FileSystem, root: str, settings: JsonObject, made: int, *, alone: bool) -> None:
    """Leave progress of the same conversion or none. Raises ValueError if another's must not be removed.

    made: the folders that this run made for the store.
    """
    progress = f"{root}/{PROGRESS}"
    if filesystem.exists(path := f"{progress}/{_SETTINGS}"):
        command = command_of(settings)
        before = parsed(filesystem.cat_file(path), path, remedy=f"delete {root} and run {command} again")
        difference = _difference(before, settings)
        ended = filesystem.exists(f"{progress}/{_ENDED}")
        if not difference and not (ended and alone):
            return
        if not alone:
            raise ValueError(f"another {command} is at work in {root}: wait for it, or give another OUT")
        if not ended and _any_done(filesystem, progress):
            raise ValueError(
                f"{root} holds an unfinished conversion begun with {difference}: finish it with the settings that it "
                f"was begun with, delete {root}, or give another OUT"
            )
        why = f"its unfinished conversion had {difference}" if difference else "its conversion had been refused"
        logging.warning("%s is begun anew, %s", root, why)
        made = _folders_made(filesystem, root)
        _remove(filesystem, root)
    else:
        _require_ours(filesystem, root)
        if alone:
            _remove(filesystem, root)
    filesystem.makedirs(progress, exist_ok=True)
    if made:
        _write(filesystem, progress, _FOLDERS, {"made": made})
    _write(filesystem, progress, _SETTINGS, settings)


def _require_ours(filesystem: FileSystem, root: str) -> None:
    """Raise ValueError for a file that would be written over, or removed with the progress, and may be the user's:
    only beside reports of shards is it known to be a conversion's."""
    progress = f"{root}/{PROGRESS}"
    names = _names_if_any(filesystem, progress)
    foreign = [f"{progress}/{name}" for name in sorted(names) if not _OF_PROGRESS.fullmatch(name)]
    if not any(map(_is_report, names)):
        foreign += [f"{root}/{name}" for name in sorted(_names_if_any(filesystem, root)) if _OF_STORE.fullmatch(name)]
    if foreign:
        _remove_if_empty(filesystem, progress)
        raise ValueError(f"{foreign[0]} is of no conversion that is known here: move it away, or give another OUT")


def names_in(filesystem: FileSystem, folder: str) -> set[str]:
    """Of the files and folders in it: one request for a thousand of them."""
    names = {path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(folder, detail=False)}
    filesystem.invalidate_cache()  # what other nodes write there from now on is not in this listing
    return names


def _names_if_any(filesystem: FileSystem, folder: str) -> set[str]:
    """None where there is no such folder, as in an object store that has nothing in it."""
    try:
        return names_in(filesystem, folder)
    except FileNotFoundError:
        return set()


def _any_done(filesystem: FileSystem, progress: str) -> bool:
    return any(map(_is_report, names_in(filesystem, progress)))


def _is_report(name: str) -> bool:
    """Whether it is a shard's report, or what a filter has found out of one."""
    return name[:5].isdigit() and name[5:] in (".json", "-marks.parquet")


def command_of(settings: JsonObject) -> str:
    """What writes stores with such settings."""
    return "rtp filter" if _FILTERED in settings else "rtp store" if _CHANGED in settings else "rtp preprocess"


def _missing_folders(filesystem: FileSystem, root: str) -> int:
    """How many local folders must be made for `root`, itself and those above; object stores have none."""
    missing = 0
    while is_local(filesystem) and not os.path.isdir(root) and os.path.dirname(root) != root:
        root = os.path.dirname(root)
        missing += 1
    return missing


def _folders_made(filesystem: FileSystem, root: str) -> int:
    """By the run that began what is in `root`."""
    path = f"{root}/{PROGRESS}/{_FOLDERS}"
    try:
        made = parsed(filesystem.cat_file(path), path, remedy=f"delete {path}").get("made")
    except (FileNotFoundError, ValueError):
        return 0
    return made if isinstance(made, int) else 0


def _remove_empty(root: str, folders: int) -> None:
    """The local folder of a store and those above it, so many as were made for it, as far as nothing is in them."""
    for _ in range(folders):
        os.rmdir(root)
        root = os.path.dirname(root)


def _remove_if_empty(filesystem: FileSystem, folder: str) -> None:
    """An object store has no empty folders."""
    if is_local(filesystem):
        with suppress(OSError):
            os.rmdir(folder)


def _remove(filesystem: FileSystem, root: str) -> None:
    """Everything that conversions write, and nothing else; the settings first: what lies there without is nobody's."""
    progress = f"{root}/{PROGRESS}"
    if filesystem.exists(f"{progress}/{_SETTINGS}"):
        filesystem.rm(f"{progress}/{_SETTINGS}")
    ours = [name for name in _names_if_any(filesystem, root) if _OF_STORE.fullmatch(name)]
    if ours:
        filesystem.rm([f"{root}/{name}" for name in ours])
    if filesystem.exists(progress):
        filesystem.rm(progress, recursive=True)


def _write(filesystem: FileSystem, progress: str, name: str, data: JsonObject) -> None:
    with atomic_write(filesystem, f"{progress}/{name}", temporary=progress) as file:
        file.write(json.dumps(data).encode())


def _difference(before: JsonObject, now: JsonObject) -> str:
    """The first difference in words; empty if there is none."""
    for key in now | before:  # either may leave out what has its default
        if before.get(key) != now.get(key):
            return f"another {key} ({_short(before.get(key))}, now {_short(now.get(key))})"
    return ""


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def remove_progress(filesystem: FileSystem, root: str) -> None:
    """Of a finished store. Another process that did the same work may write there at this moment: it removes the rest
    when it ends."""
    try:
        filesystem.rm(f"{root}/{PROGRESS}", recursive=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            logging.warning("%s/%s is of no more use and cannot be removed (%s)", root, PROGRESS, error)


@contextmanager
def lock_of(filesystem: FileSystem, root: str) -> Iterator[Callable[[int], bool | None]]:
    """A function that locks a local folder (fcntl.LOCK_...): False if another process has it locked, None where nothing
    can be locked, as in object stores."""
    if not is_local(filesystem):
        yield lambda kind: None
        return
    folder = os.open(root, os.O_RDONLY)

    def locked(kind: int) -> bool | None:
        try:
            fcntl.flock(folder, kind)
        except BlockingIOError:
            return False
        except OSError:  # a network folder without locks
            return None
        return True

    try:
        yield locked
    finally:
        os.close(folder)
