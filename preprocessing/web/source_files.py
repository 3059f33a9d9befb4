"""The files of a source: those of a split by a pattern, and the images that annotations name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from preprocessing.store.file_system import FileSystem, is_local
from preprocessing.web.extra_fields import NO_EXTRA_FIELDS, ExtraFields
from preprocessing.web.records import IMAGE_SUFFIXES, parsed
from preprocessing.web.splits import files_of_split, is_of_split, shortened

_MOST_SHOWN = 80  # characters of a name in a reason


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where a source's annotations lie, and its images; `split` is the one asked for, `extra` what else is read."""

    filesystem: FileSystem
    root: str
    images: str
    split: str
    extra: ExtraFields = NO_EXTRA_FIELDS


def split_files(folder: Folder, *patterns: str, subsets: Sequence[str] = ()) -> list[str]:
    """Files of the split whose name fits one of `patterns`. Raises FileNotFoundError or ValueError if there is none."""
    nothing = f"{folder.root} holds no {' or '.join(patterns)}"
    names = list(names_below(folder.filesystem, folder.root, patterns))
    if not names:
        raise FileNotFoundError(f"{nothing}: is --format the right one?")
    try:
        return [f"{folder.root}/{name}" for name in files_of_split(names, folder.split, subsets=subsets)]
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{nothing} {error}") from None


def names_below(filesystem: FileSystem, root: str, patterns: Sequence[str]) -> Iterator[str]:
    """Paths below `root`, in order, without hidden ones; no glob, which would read signs in `root` as patterns."""
    for path in sorted(_walk(root) if is_local(filesystem) else filesystem.find(root)):
        name = path[len(root) + 1 :]
        base = name.rpartition("/")[2].lower()
        if any(fnmatchcase(base, pattern) for pattern in patterns) and not re.search(r"(^|/)\.", name):
            yield name


def _walk(root: str) -> Iterator[str]:
    """Local files below `root`, also through folders that are links, as data are often laid out; not in circles."""
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inside = (os.path.realpath(f"{folder}/{name}") for name in folders)
        folders[:] = [name for name, end in zip(folders, inside, strict=True) if not f"{real}/".startswith(f"{end}/")]
        yield from (f"{folder}/{name}" for name in files)


def one_file(folder: Folder, pattern: str) -> str:
    paths = split_files(folder, pattern)
    if len(paths) > 1:
        names = shortened([path[len(folder.root) + 1 :] for path in paths])
        raise ValueError(
            f"{folder.root} holds {len(paths)} files {pattern} of split {folder.split!r} ({names}): "
            f"name one by --split, or give a folder that holds only one"
        )
    return paths[0]


def json_of(folder: Folder, pattern: str, key: str) -> Any:
    path = one_file(folder, pattern)
    data = parsed(folder.filesystem.cat_file(path), path)
    if not isinstance(data, Mapping) or key not in data:
        raise ValueError(f"{path} has no list {key!r}: is --format the right one?")
    return data[key]


# --- Images ---


class Pictures:
    """The image files below a folder by what a layout calls them, `key` of their path."""

    def __init__(self, folder: Folder, key: Callable[[str], str]) -> None:
        self._root = folder.images
        self._split = folder.split
        self._names: dict[str, list[str]] = {}
        for name in names_below(folder.filesystem, folder.images, [f"*{suffix}" for suffix in IMAGE_SUFFIXES]):
            self._names.setdefault(key(name), []).append(name)

    def locate(self, called: str, name: str, *, path: str = "") -> tuple[str, str | None]:
        """The file that is `called` so, `name` to a reader: the one at `path`, or in the split's folder, or the only
        one; of several that are left, none is guessed."""
        names = self._names.get(called, [])
        if len(names) > 1:
            names = [p for p in names if f"/{p}".endswith(f"/{path}")] or names
        if len(names) > 1:
            names = [p for p in names if is_of_split(p, self._split)] or names
        if len(names) > 1:
            return "", f"its image {_shown(name)} is there {len(names)} times"
        return (f"{self._root}/{names[0]}", None) if names else ("", missing(name))


def missing(name: str) -> str:
    """Why an image cannot be used whose file is not there; of a long path the end is shown."""
    return f"its image {name if len(name) <= _MOST_SHOWN else f'...{name[-_MOST_SHOWN:]}'} is missing"


def below(folder: str, name: str) -> tuple[str, str | None]:
    """The path of an image that the annotation names below `folder`, where it may name one that is elsewhere."""
    if "://" in name or name.startswith("data:"):
        return "", f"its image {_shown(name)} is an address: download the picture, and name its file"
    leads_out = name.startswith("/") or ".." in name.split("/")
    return ("", elsewhere(name)) if leads_out else (f"{folder}/{name}", None)


def elsewhere(name: object) -> str:
    return f"its image {_shown(name)} is not named by a path below the folder of images"


def beside(folder: Folder, path: str) -> str:
    """The folder that a file's images are named below: the file's own, unless another is given."""
    return path.rpartition("/")[0] if folder.images == folder.root else folder.images


def _shown(name: object) -> str:
    return str(name)[:_MOST_SHOWN]
