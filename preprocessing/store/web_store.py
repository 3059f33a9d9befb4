"""The store of image-text examples: a row has a picture (or none, or several) and texts, in an episode store's files.

`<root>/<name>/<version>/<split>/` holds `shard-00000-of-0000N.parquet`, `quarantine.jsonl` and `manifest.json`, written
last. An example is one text pair of a row; examples are counted through the rows in order. Images are kept encoded and
resized when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from preprocessing.loading.windows import StepIndex
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.file_system import FileSystem, file_system_of, is_local
from preprocessing.store.json_files import taken_apart
from preprocessing.store.json_records import read_record
from preprocessing.store.manifest_file import MANIFEST, ManifestFile, find_manifest
from preprocessing.store.shard_files import ShardFiles
from preprocessing.store.store_manifest import WebManifest

WEB_SCHEMA_VERSION = 1
KIND = "web"
WEB_ROW_GROUP_ROWS = 16  # a photograph with its questions is some 50 KB, and many places are read from at once

TEXT_COLUMNS = ("prompt", "answer", "references")
WEB_SCHEMA = pa.schema(
    {
        "record": pa.int64(),
        "image": pa.binary(),
        "prompt": pa.list_(pa.string()),
        "answer": pa.list_(pa.string()),
        "references": pa.list_(pa.list_(pa.string())),
    }
)
PICTURE, PICTURES = "image", "images"
"""The column of pictures: of a store that has one a row (or none), and of one that has several, in their order."""
EXTRA_COLUMNS = {"score": pa.list_(pa.float64()), "language": pa.list_(pa.string())}
"""Of stores whose source says so: one value an example, null where it says nothing."""
OF_EXAMPLES = (*TEXT_COLUMNS, *EXTRA_COLUMNS)


def web_schema(*, score: bool, language: bool, several_pictures: bool = False) -> pa.Schema:
    """The columns of a store."""
    extra = [pa.field(n, EXTRA_COLUMNS[n]) for n, there in (("score", score), ("language", language)) if there]
    several = pa.field(PICTURES, pa.list_(pa.binary()))
    base = [several if each.name == PICTURE and several_pictures else each for each in WEB_SCHEMA]
    return pa.schema([*base, *extra])


def pictures_of(cell: bytes | Sequence[bytes] | None) -> tuple[bytes, ...]:
    """The encoded pictures in a cell of either column."""
    if cell is None:
        return ()
    return (cell,) if isinstance(cell, bytes) else tuple(cell)


def picture_cell(pictures: Sequence[bytes], schema: pa.Schema) -> bytes | list[bytes] | None:
    """What stands in a row of these columns for its pictures."""
    if PICTURES in schema.names:
        return list(pictures)
    return pictures[0] if pictures else None


@dataclass(frozen=True, kw_only=True, eq=False)
class WebShard:
    """One Parquet file; `example_counts` int32 (R,) is the number of examples of each row."""

    path: str
    rows: int
    row_group_rows: int
    example_counts: np.ndarray
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class WebStore:
    """A finished store of image-text examples."""

    root: str
    manifest: WebManifest
    manifest_sha256: str
    shards: tuple[WebShard, ...]
    index: StepIndex = field(repr=False)
    """Where shards and rows begin among the examples: a row is to its examples what an episode is to its steps."""
    _files: ShardFiles = field(repr=False)

    @staticmethod
    def open(path: str, split: str | None = None) -> WebStore:
        """Open the store at `path`, or else the only one (of `split`, if given) below it."""
        filesystem, root = file_system_of(str(path))
        return WebStore.described(filesystem, find_manifest(filesystem, root.rstrip("/"), str(path), split), str(path))

    @staticmethod
    def described(filesystem: FileSystem, found: ManifestFile, path: str) -> WebStore:
        """The store of this manifest, in error messages `path`."""
        root, data = found.root, found.data
        if data.get("kind") != KIND:
            raise ValueError(
                f"{path} is a store of robot episodes, and image-text examples are needed here: rtp preprocess "
                f"--format makes such stores"
            )
        if data.get("schema_version") != WEB_SCHEMA_VERSION:
            version = data.get("schema_version")
            raise ValueError(f"{path} is of schema {version}, this code reads {WEB_SCHEMA_VERSION}")
        with taken_apart(f"{root}/{MANIFEST}", remedy="delete the store and preprocess again"):
            manifest = read_record(WebManifest, data)
        shards = tuple(
            WebShard(
                path=f"{root}/{entry.file}",
                rows=entry.rows,
                row_group_rows=manifest.row_group_rows,
                example_counts=np.array(entry.episode_lengths, np.int32),
                sha256=entry.sha256,
            )
            for entry in manifest.shards
        )
        return WebStore(
            root=root if is_local(filesystem) else filesystem.unstrip_protocol(root),
            manifest=manifest,
            manifest_sha256=found.sha256,
            shards=shards,
            index=StepIndex.from_lengths([shard.example_counts for shard in shards]),
            _files=ShardFiles(filesystem, [shard.path for shard in shards], [e.bytes for e in manifest.shards]),
        )

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return self.manifest.dataset

    @property
    def schema(self) -> pa.Schema:
        """The columns of its files."""
        settings = self.manifest.settings
        return web_schema(
            score=bool(settings.get("score")),
            language=bool(settings.get("language")),
            several_pictures=bool(settings.get("pictures")),
        )

    @property
    def picture_column(self) -> str:
        """The column that `pictures_of` reads."""
        return PICTURES if self.manifest.settings.get("pictures") else PICTURE

    @property
    def most_pictures(self) -> int:
        """No row has more pictures; 1 where none has several."""
        return max(self.manifest.most_pictures, 1)

    @property
    def num_examples(self) -> int:
        return self.index.num_rows

    @property
    def num_bytes(self) -> int:
        """Bytes of the Parquet files."""
        return sum(entry.bytes for entry in self.manifest.shards)

    def read_rows(self, shard: int, row_group: int, columns: Sequence[str]) -> pa.Table:
        """One row group of one shard."""
        return self._files.read(shard, columns, [row_group])

    def read_shard(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Every row of one shard."""
        return self._files.read(shard, columns)

    def texts(self) -> Iterator[tuple[list[str], list[str], list[list[str]]]]:
        """(prompts, answers, references) of each row's examples, in order."""
        for number in range(len(self.shards)):
            table = self._files.read(number, TEXT_COLUMNS)
            yield from zip(*(table[column].to_pylist() for column in TEXT_COLUMNS), strict=True)


Store = EpisodeStore | WebStore


def open_store(path: str, split: str | None = None) -> Store:
    """The store at `path`, of either kind. Raises FileNotFoundError or ValueError if there is none."""
    filesystem, root = file_system_of(str(path))
    found = find_manifest(filesystem, root.rstrip("/"), str(path), split)
    location = found.root if is_local(filesystem) else filesystem.unstrip_protocol(found.root)
    if found.data.get("kind") == KIND:
        return WebStore.described(filesystem, found, location)
    return EpisodeStore.described(filesystem, found, location)


def robot_stores(stores: Iterable[Store]) -> list[EpisodeStore]:
    """The stores of robot episodes among `stores`, in order."""
    return [store for store in stores if isinstance(store, EpisodeStore)]


def num_samples(store: Store) -> int:
    """Windows of a robot store, examples of one of web data."""
    return store.num_steps if isinstance(store, EpisodeStore) else store.num_examples
