"""RLDS datasets in TFDS layout -> episodes, without TensorFlow.

`open_dataset` reads features.json and dataset_info.json of a version folder; `RldsDataset.episodes` streams its shards
record by record. An episode is a set of columns over its steps; images stay encoded. A damaged record comes out as a
`Corrupt` in its place, so that nothing is lost in silence: Episodes + Corrupts of a shard never number fewer than the
records that dataset_info.json declares.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from preprocessing.store.file_system import FileSystem, file_system_of, is_local
from preprocessing.store.json_files import JsonObject, parsed, taken_apart
from preprocessing.store.shard_files import open_with_retries, reaching, with_retries
from preprocessing.tfds.array_record import read_array_records
from preprocessing.tfds.features import Column, Feature, flatten
from preprocessing.tfds.tf_example import Example, parse
from preprocessing.tfds.tfrecord import Damage, Record, read_records, skip_records

# Buckets of Open X-Embodiment that anyone may read: asking for credentials there fails for users who have none.
_PUBLIC = ("gs://gresearch/", "gs://gdm-robotics-open-x-embodiment/", "gs://tfds-data/")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_STEPS = "steps/"
_REMEDY = "download it again"
_READ_BYTES = 8 << 20
_PERCENT = r"(-?\d+(?:\.\d+)?%)?"
_SLICE = re.compile(rf"(.+)\[(?:(-?\d+)?:(-?\d+)?|{_PERCENT}:{_PERCENT})\]")


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One record: `steps` maps a path such as "observation/image" to a column over `num_steps` steps.

    A column is an array (num_steps, ...), or a list of bytes (images, texts), or a list of arrays where sizes vary.
    `metadata` maps the episode's own fields, such as "episode_metadata/file_path", to their values. `crc` is the masked
    CRC32C of the record. `unread` are the optional fields that this record does not have as declared.
    """

    shard: str
    record: int
    offset: int
    crc: int
    num_steps: int
    steps: dict[str, Column]
    metadata: dict[str, Any]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Corrupt:
    """A record that cannot be read; `offset` in bytes is where it begins in the shard file."""

    shard: str
    record: int
    offset: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class SourceShard:
    """One file of a split; `num_records` is what dataset_info.json declares, `num_bytes` the size once it was found.

    Of a sliced split only the records from `first` on and before `stop` count; `stop` None is the end of the file,
    even if the file holds more than is declared.
    """

    path: str
    name: str
    num_records: int
    num_bytes: int = 0
    first: int = 0
    stop: int | None = None

    @property
    def num_selected(self) -> int:
        """Declared records in the slice."""
        return (self.num_records if self.stop is None else self.stop) - self.first

    def parts(self, max_bytes: int) -> tuple[SourceShard, ...]:
        """The same records as consecutive runs of equal length, as few as keep a run's file near `max_bytes`."""
        count = max(min(-(-self.num_bytes // max_bytes), self.num_selected), 1)
        bounds = [self.first + part * self.num_selected // count for part in range(count)]
        return tuple(replace(self, first=a, stop=b) for a, b in zip(bounds, [*bounds[1:], self.stop], strict=True))


@dataclass(frozen=True, kw_only=True)
class SplitSlice:
    """Records `first` to `stop` (excluded) of a split, counted as dataset_info.json declares them."""

    split: str
    first: int
    stop: int
    whole: bool

    @property
    def name(self) -> str:
        """Safe as a folder's name, and the same however the slice was written: "train", or "train-0-1000"."""
        return self.split if self.whole else f"{self.split}-{self.first}-{self.stop}"


@dataclass(frozen=True, kw_only=True)
class RldsDataset:
    """A version folder. `features` are the leaves of features.json by record key, `splits` the declared shards."""

    folder: str
    name: str
    version: str
    features: Mapping[str, Feature]
    splits: Mapping[str, tuple[SourceShard, ...]]

    @property
    def control_hz(self) -> None:
        """The format records no rate."""

    @property
    def own_spec(self) -> None:
        """The format does not say what its fields mean."""

    @property
    def step_paths(self) -> tuple[str, ...]:
        """Paths of the step columns, such as "observation/image"."""
        return tuple(key.removeprefix(_STEPS) for key in self.features if key.startswith(_STEPS))

    @property
    def episode_paths(self) -> tuple[str, ...]:
        """Paths of the episode's own fields, such as "episode_metadata/file_path"."""
        return tuple(key for key in self.features if not key.startswith(_STEPS))

    def feature(self, path: str) -> Feature:
        """The feature of a step path, or of an episode field."""
        return self.features.get(_STEPS + path) or self.features[path]

    def split_slice(self, split: str) -> SplitSlice:
        """What "train", "train[:1000]", "train[-100:]" or "train[90%:]" comes to, as TFDS reads it.

        Raises ValueError for an unknown split, another form, or a slice that is empty or leaves the split.
        """
        counts = {name: sum(shard.num_records for shard in shards) for name, shards in self.splits.items()}
        return sliced(split, counts, self.folder, declared_in="dataset_info.json")

    def shards(self, split: str) -> tuple[SourceShard, ...]:
        """The files of `split`, or of a slice of it, that hold what is asked for.

        Raises ValueError as `split_slice` does, FileNotFoundError naming a missing file.
        """
        filesystem, root = open_folder(self.folder)
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in filesystem.ls(root, detail=True)}
        shards = []
        for shard in selected(self.splits, self.split_slice(split)):
            if shard.name in sizes:
                shards.append(replace(shard, num_bytes=sizes[shard.name]))
            elif (name := shard.name.replace(".tfrecord", ".array_record")) in sizes:
                shards.append(replace(shard, path=f"{self.folder}/{name}", name=name, num_bytes=sizes[name]))
            else:
                raise FileNotFoundError(
                    f"split {split!r} of {self.folder} lacks its file {shard.name}: download it, or ask another --split"
                )
        return tuple(shards)

    def episodes(
        self, split: str, *, paths: Collection[str] | None = None, check_crc: bool = True
    ) -> Iterator[Episode | Corrupt]:
        """Every record of a split in file order."""
        for shard in self.shards(split):
            yield from self.read_shard(shard, paths=paths, check_crc=check_crc)

    def read_shard(
        self,
        shard: SourceShard,
        *,
        paths: Collection[str] | None = None,
        optional: Collection[str] = (),
        check_crc: bool = True,
    ) -> Iterator[Episode | Corrupt]:
        """Every record of one file, streaming. `paths` (of steps and of the episode) limits what is decoded.

        Step paths that are `optional` are read as well if a record has them as declared; they never cost an episode.
        `check_crc=False` skips the CRC of payloads.
        """
        wanted = self._wanted(paths)
        extra = self._wanted(optional)
        number = shard.first - 1
        for number, item in enumerate(_records(shard, check_crc), shard.first):
            yield _episode(item, shard.name, number, wanted, extra)
        for missing in range(number + 1, shard.first + shard.num_selected):
            reason = f"missing: dataset_info.json declares {shard.num_records} records, the file ends before"
            yield Corrupt(shard=shard.name, record=missing, offset=shard.num_bytes, reason=reason)

    def _wanted(self, paths: Collection[str] | None) -> list[Feature]:
        if paths is None:
            return [feature for feature in self.features.values() if not feature.refusal]
        unknown = [path for path in paths if path not in self.features and _STEPS + path not in self.features]
        if unknown:
            have = ", ".join(sorted(key.removeprefix(_STEPS) for key in self.features))
            raise ValueError(f"{self.folder} has no field {unknown[0]!r}: features.json has {have}")
        return [self.feature(path) for path in paths]


def sliced(split: str, counts: Mapping[str, int], folder: str, *, declared_in: str) -> SplitSlice:
    """What `split`, a name or a slice of one, comes to where the splits have `counts` records.

    Raises ValueError for an unknown split, another form, or a slice that is empty or leaves the split.
    """
    name, bounds = split, None
    if split not in counts and (match := _SLICE.fullmatch(split)):
        name, bounds = match[1], (match[2] or match[4], match[3] or match[5])
    if name not in counts:
        known = ", ".join(counts) or "none"
        form = " and a slice is written train[:1000] or train[90%:]" if "[" in name else ""
        raise ValueError(f"{folder} has no split {name!r}: {declared_in} names {known}{form}")
    count = counts[name]
    if bounds is None:
        return SplitSlice(split=name, first=0, stop=count, whole=True)
    first, stop = (_bound(text, count, default) for text, default in zip(bounds, (0, count), strict=True))
    if not 0 <= first < stop <= count:
        raise ValueError(f"{split!r} asks for records {first} to {stop}, split {name!r} has {count}")
    return SplitSlice(split=name, first=first, stop=stop, whole=(first, stop) == (0, count))


def open_folder(url: str) -> tuple[FileSystem, str]:
    """(file system, path) of a folder or file; the public buckets of Open X-Embodiment need no account.

    Raises ValueError if the URL is of a kind that nothing installed can open.
    """
    try:
        return file_system_of(url, {"token": "anon"} if url.startswith(_PUBLIC) else None)
    except ImportError as error:
        remedy = "pip install 'rt-pipelines[gcs]'" if url.startswith(("gs:", "gcs:")) else str(error)
        raise ValueError(f"{url} cannot be opened here: {remedy}") from None


def open_dataset(folder: str) -> RldsDataset:
    """Open a version folder such as bridge_dataset/1.0.0, local or a URL.

    Raises FileNotFoundError if the folder does not exist and ValueError if it holds no RLDS dataset.
    """
    folder = str(folder).rstrip("/")
    filesystem, root = open_folder(folder)
    with reaching(folder):
        there = filesystem.isdir(root)
        what = "is a file, not a folder" if there or filesystem.exists(root) else "does not exist"
    if not there:
        raise FileNotFoundError(f"{folder} {what}: give the version folder of a TFDS dataset, with features.json")
    tree, info = (_json(filesystem, folder, root, name) for name in ("features.json", "dataset_info.json"))
    with taken_apart(f"{folder}/features.json", remedy=_REMEDY):
        features = flatten(tree)
    if not any(key.startswith(_STEPS) for key in features):
        have = ", ".join(sorted({key.partition("/")[0] for key in features})) or "empty dictionaries"
        raise ValueError(f"{folder} holds no episodes: its features.json has no `steps`, only {have}")
    with taken_apart(f"{folder}/dataset_info.json", remedy=_REMEDY):
        above, _, last = root.rstrip("/").rpartition("/")
        name = folder_name(info.get("name") or above.rpartition("/")[2])
        version = folder_name(info.get("version") or last)
        splits = {folder_name(split["name"]): _shards(folder, name, split) for split in info.get("splits", [])}
    return RldsDataset(folder=folder, name=name, version=version, features=features, splits=splits)


def folder_name(value: object) -> str:
    """`value` as a name that may become a folder of the store. Raises ValueError if it would lead elsewhere."""
    name = str(value)
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} cannot be the name of a folder")
    return name


def _json(filesystem: FileSystem, folder: str, root: str, name: str) -> JsonObject:
    try:
        blob = filesystem.cat_file(f"{root}/{name}")
    except FileNotFoundError:
        inside = sorted(path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(root, detail=False))
        versions = [child for child in inside if re.fullmatch(r"\d+\.\d+\.\d+", child)]
        newest = max(versions, key=lambda version: [int(part) for part in version.split(".")], default="")
        hint = f"give its version folder {folder}/{newest}" if versions else "give a version folder that has one"
        raise ValueError(f"{folder} is not a TFDS dataset, it has no {name}: {hint}") from None
    return parsed(blob, f"{folder}/{name}", remedy=_REMEDY)


def _shards(folder: str, name: str, split: JsonObject) -> tuple[SourceShard, ...]:
    """The split's files; the real downloads of Open-X are tfrecord although their metadata may say array_record."""
    lengths = [int(length) for length in split.get("shardLengths", [])]
    if min(lengths, default=0) < 0:
        raise ValueError(f"split {split['name']} has a shard of {min(lengths)} records: {_REMEDY}")
    template = split.get("filepathTemplate") or _TEMPLATE
    digits = max(5, len(str(len(lengths))))
    names = []
    for index in range(len(lengths)):
        values = {
            "DATASET": name,
            "SPLIT": split["name"],
            "FILEFORMAT": "tfrecord",
            "SHARD_INDEX": f"{index:0{digits}d}",
            "NUM_SHARDS": f"{len(lengths):0{digits}d}",
            "SHARD_X_OF_Y": f"{index:0{digits}d}-of-{len(lengths):0{digits}d}",
        }
        names.append(re.sub(r"\{(\w+)\}", lambda match, values=values: values.get(match[1], match[0]), template))
    return tuple(
        SourceShard(path=f"{folder}/{file}", name=file, num_records=count)
        for file, count in zip(names, lengths, strict=True)
    )


def _bound(text: str | None, count: int, default: int) -> int:
    """A record number: negative ones count from the end, percents round to the nearest record as in TFDS."""
    if not text:
        return default
    if text.endswith("%") and abs(float(text[:-1])) > 100:
        raise ValueError(f"{text} asks for records beyond the split's 100%")
    number = round(float(text[:-1]) * count / 100) if text.endswith("%") else int(text)
    return number + count if number < 0 else number


def selected(splits: Mapping[str, tuple[SourceShard, ...]], part: SplitSlice) -> Iterator[SourceShard]:
    """The shards that a slice touches, each with its part."""
    if part.whole:
        yield from splits[part.split]
        return
    before = 0
    for shard in splits[part.split]:
        first, stop = max(part.first - before, 0), min(part.stop - before, shard.num_records)
        if first < stop:
            yield replace(shard, first=first, stop=None if stop == shard.num_records else stop)
        before += shard.num_records


def _records(shard: SourceShard, check_crc: bool) -> Iterator[Record | Damage]:
    """The part of a file that `shard` selects; what lies before it is passed over by its headers alone."""
    filesystem, path = open_folder(shard.path)
    if ".array_record" in shard.name:
        yield from read_array_records(filesystem, path, first=shard.first, stop=shard.stop)
        return
    listed = 0 if is_local(filesystem) else shard.num_bytes  # which costs an object store no further request
    size = listed or with_retries(lambda: filesystem.size(path), what=shard.path)
    start = 0
    if shard.first:
        with open_with_retries(filesystem, path, num_bytes=size) as file:
            start = skip_records(file, size, shard.first)
    with open_with_retries(filesystem, path, ahead_bytes=_READ_BYTES, num_bytes=size) as file:
        count = None if shard.stop is None else shard.stop - shard.first
        yield from islice(read_records(file, size, check_crc=check_crc, start=start), count)


def _episode(
    item: Record | Damage, shard: str, number: int, wanted: list[Feature], optional: list[Feature]
) -> Episode | Corrupt:
    if isinstance(item, Damage):
        return Corrupt(shard=shard, record=number, offset=item.offset, reason=item.reason)
    try:
        example = parse(item.payload)
        values = {feature.key: feature.read(example) for feature in wanted}
        steps = {key.removeprefix(_STEPS): value for key, value in values.items() if key.startswith(_STEPS)}
        num_steps = _num_steps(steps)
    except (ArithmeticError, LookupError, ValueError) as error:
        reason = " ".join(str(error).split())
        return Corrupt(shard=shard, record=number, offset=item.offset, reason=reason)
    metadata = {key: value for key, value in values.items() if not key.startswith(_STEPS)}
    columns = {feature.key.removeprefix(_STEPS): _optional(feature, example, num_steps) for feature in optional}
    place = {"shard": shard, "record": number, "offset": item.offset, "crc": item.crc}
    steps |= {path: column for path, column in columns.items() if column is not None}
    unread = tuple(path for path, column in columns.items() if column is None)
    return Episode(**place, num_steps=num_steps, steps=steps, metadata=metadata, unread=unread)


def _optional(feature: Feature, example: Example, num_steps: int) -> Column | None:
    """The column, or None if this record does not have it as declared."""
    try:
        column = feature.read(example)
    except ValueError:
        return None
    return column if len(column) == num_steps else None


def _num_steps(steps: Mapping[str, Column]) -> int:
    lengths = {path: len(column) for path, column in steps.items()}
    missing = [path for path, length in lengths.items() if length == 0]
    if missing and len(missing) < len(lengths):
        raise ValueError(f"{', '.join(missing)} missing from every step")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns disagree on the number of steps: {lengths}")
    num_steps = next(iter(lengths.values()), 0)
    if num_steps == 0:
        raise ValueError("the episode has no steps")
    return num_steps
