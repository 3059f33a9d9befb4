"""One source shard -> one Parquet shard, streaming record by record; knows nothing of Ray.

A record that cannot be read, or whose values its spec refuses, goes to quarantine with its reason. What no model reads
costs no episode: it is left empty, and counted. What the shard contributes to the manifest is written beside it as
JSON, last (`shard_report`): that file means "this shard is done".
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.conversion.freed_memory import keep_freed_memory
from preprocessing.conversion.shard_moments import ShardMoments
from preprocessing.conversion.shard_report import QuarantinedRecord, ShardCounts, ShardReport, report_name
from preprocessing.conversion.step_marks import STEP_MARKS, read_marks, require_one_episode
from preprocessing.dataset_spec import DatasetSpec
from preprocessing.episode_source import EpisodeSource
from preprocessing.rlds import Corrupt, Episode, SourceShard
from preprocessing.store.episode_store import (
    HashingFile,
    ShardWriter,
    StoreLayout,
    atomic_write,
    binaries,
    fixed_lists,
    image_column,
    instruction_id,
)
from preprocessing.store.file_system import file_system_of
from preprocessing.store.images import (
    ImageSize,
    Resize,
    encode_jpeg,
    encode_png,
    image_size,
    reencode,
    require_whole_image,
    resize_image,
)
from preprocessing.store.json_records import to_text
from preprocessing.store.manifest_file import PROGRESS
from preprocessing.store.step_counts import StepCounts
from preprocessing.tfds.features import naming
from rt_models.spec import MAIN_CAMERA


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What all shards of a conversion share. `root` is the store's folder; `limits` are records to read a shard.

    `image_sizes` are those that the frames of each camera are brought to, None for those that stay as recorded.
    `embedding` is the path of shipped vectors to keep, or None if an encoder computes them afterwards.
    """

    dataset: EpisodeSource
    spec: DatasetSpec
    shards: tuple[SourceShard, ...]
    limits: tuple[int | None, ...]
    root: str
    layout: StoreLayout
    image_sizes: Mapping[str, ImageSize | None]
    resize: Resize
    embedding: str | None
    check_crc: bool
    check_frames: bool

    def shard_file(self, index: int) -> str:
        return f"shard-{index:05d}-of-{len(self.shards):05d}.parquet"

    def paths(self) -> tuple[str, ...]:
        """Fields that every episode must have: what the spec needs, and the vectors."""
        needed = self.spec.paths(self.layout.cameras)
        return tuple(dict.fromkeys([*needed, *([self.embedding] if self.embedding else [])]))

    def optional_paths(self) -> tuple[str, ...]:
        """Marks and reward that the dataset has as one number per step."""
        return tuple(path for path in self._unneeded() if self.dataset.feature(path).is_one_number)

    def videos(self) -> dict[str, str]:
        """Cameras whose frames are decoded from a video -> its codec."""
        codecs = {role: self.dataset.feature(self.spec.all_cameras[role]).codec for role in self.layout.cameras}
        return {role: codec for role, codec in codecs.items() if codec}

    def paths_of_other_form(self) -> tuple[str, ...]:
        """Marks and reward that the dataset has in a form that cannot be read as one number per step."""
        return tuple(path for path in self._unneeded() if not self.dataset.feature(path).is_one_number)

    def _unneeded(self) -> list[str]:
        there = set(self.dataset.step_paths) - set(self.paths()) - set(self.spec.ignored_marks)
        return [path for path in (*STEP_MARKS, "reward") if path in there]


def instructions_name(index: int) -> str:
    """A shard's distinct instructions in the progress folder."""
    return f"{index:05d}-instructions.parquet"


def convert_shard(task: ShardTask, index: int) -> ShardCounts:
    """Write shard `index` and its report. Raises ValueError if frames differ in size and no size is asked for."""
    keep_freed_memory()
    filesystem, root = file_system_of(task.root)
    progress = f"{root}/{PROGRESS}"
    source = task.shards[index]
    shard = _Shard(task)
    with atomic_write(filesystem, f"{root}/{task.shard_file(index)}", temporary=progress) as file:
        records = task.dataset.read_shard(
            source, paths=task.paths(), optional=task.optional_paths(), check_crc=task.check_crc
        )
        with ShardWriter(file, task.layout.schema()) as writer:
            for item in islice(records, task.limits[index]):
                table = shard.take(item)
                if table is not None:
                    writer.append(table)
    with atomic_write(filesystem, f"{progress}/{instructions_name(index)}", temporary=progress) as table_file:
        pq.write_table(shard.instructions.table(), pa.PythonFile(table_file, mode="w"))
    report = shard.report(task.shard_file(index), file, writer.rows, source)
    with atomic_write(filesystem, f"{progress}/{report_name(index)}", temporary=progress) as report_file:
        report_file.write(to_text(report).encode())
    return ShardCounts(episodes=len(report.episode_lengths), rows=report.rows)


class _Shard:
    """What accumulates over the records of one shard."""

    def __init__(self, task: ShardTask) -> None:
        self._task = task
        self._schema = task.layout.schema()
        self.instructions = _Instructions()
        self._fingerprint = hashlib.sha256()
        self._num_records = 0
        self._lengths: list[int] = []
        self._quarantine: list[QuarantinedRecord] = []
        self._frame_sizes: dict[str, ImageSize] = {}
        self._rates_hz: set[float] = set()
        self._moments = ShardMoments(task.spec.space.size, task.layout.proprio_size)
        self._unread: Counter[str] = Counter()
        self._odd_states: list[int] = []
        self._counts: list[StepCounts] = []  # of each episode

    def take(self, item: Episode | Corrupt) -> pa.Table | None:
        """The rows of a record, or None if it goes to quarantine."""
        self._num_records += 1
        self._fingerprint.update(f"{item.offset}:{item.crc if isinstance(item, Episode) else item.reason};".encode())
        if isinstance(item, Corrupt):
            self._leave_out(item, item.reason)
            return None
        try:
            with naming(str(self._task.spec.control_hz)):
                rate_hz = self._task.spec.rate_hz(item)
            images = {role: _frames(self._task, role, item) for role in self._task.layout.cameras}
            columns = self._columns(item) | {image_column(role): binaries(c) for role, (c, _) in images.items()}
        except ValueError as error:
            self._leave_out(item, " ".join(str(error).split()))
            return None
        self._require_one_size(item, {role: sizes for role, (_, sizes) in images.items()})
        self._rates_hz.add(rate_hz)
        self._unread.update(item.unread)
        table = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        self._lengths.append(item.num_steps)
        self._moments.add(table)
        self._counts.append(StepCounts.of(table, len(self._task.spec.flags)))
        return table

    def report(self, name: str, file: HashingFile, rows: int, source: SourceShard) -> ShardReport:
        """The report of shard file `name`, written as `file` with `rows` rows from `source`."""
        moments, state_moments = self._moments.finish()
        counts = StepCounts.sum(self._counts, len(self._task.spec.flags))
        return ShardReport(
            file=name,
            rows=rows,
            bytes=file.num_bytes,
            sha256=file.sha256,
            source=source.name,
            source_bytes=source.num_bytes,
            source_records=self._num_records,
            source_sha256_of_crcs=self._fingerprint.hexdigest(),
            episode_lengths=tuple(self._lengths),
            quarantine=tuple(self._quarantine),
            frame_size=self._frame_sizes.get(MAIN_CAMERA),
            further_frame_sizes={role: size for role, size in self._frame_sizes.items() if role != MAIN_CAMERA},
            state_moments=state_moments,
            rates_hz=tuple(sorted(self._rates_hz)),
            moments=moments,
            unread=dict(sorted(self._unread.items())),
            states_not_finite=tuple(self._odd_states),
            instruction_steps={str(number): count for number, count in sorted(counts.of_instruction.items())},
            flag_steps=counts.of_flag,
        )

    def _leave_out(self, item: Episode | Corrupt, reason: str) -> None:
        self._quarantine.append(
            QuarantinedRecord(shard=item.shard, record=item.record, offset=item.offset, reason=reason)
        )

    def _columns(self, episode: Episode) -> dict[str, pa.Array]:
        """Every column but the images. Raises ValueError for values that the spec refuses."""
        spec = self._task.spec
        steps = episode.steps
        count = episode.num_steps
        marks = read_marks(steps, count, ignored=spec.ignored_marks)
        require_one_episode(marks)
        action = spec.standardize(steps)
        proprio = spec.proprioception(steps) if self._task.layout.proprio_size else None
        columns = {
            "episode": pa.array(np.full(count, len(self._lengths), np.int32)),
            "record": pa.array(np.full(count, episode.record, np.int64)),
            "step": pa.array(np.arange(count, dtype=np.int32)),
            **{name: pa.array(marked_N) for name, marked_N in marks.items()},
            "flags": pa.array(spec.flag_bits(episode)),
            "reward": _reward(steps.get("reward"), count),
            "instruction": pa.array(self._instruction_ids(episode)),
            "action": fixed_lists(action),
            "proprio": None if proprio is None else fixed_lists(proprio),
        }
        for field in self._task.layout.source:
            with naming(field.path):
                values = np.asarray(steps[field.path])
                columns[field.column] = fixed_lists(values) if field.shape else pa.array(values)
        if proprio is not None and (odd := int((~np.isfinite(proprio).all(axis=1)).sum())):
            self._odd_states.append(odd)
        return columns

    def _instruction_ids(self, episode: Episode) -> np.ndarray:
        instruction = self._task.spec.instruction
        path = self._task.embedding
        with naming(instruction.path):
            texts = instruction.texts(episode)
        if path is None:
            return self.instructions.ids(texts, None)
        with naming(path):
            vectors_ND = np.asarray(episode.steps[path], np.float32).reshape(episode.num_steps, -1)
            return self.instructions.ids(texts, vectors_ND)

    def _require_one_size(self, episode: Episode, sizes: Mapping[str, set[ImageSize]]) -> None:
        for role, of_role in sizes.items():
            known = of_role | ({self._frame_sizes[role]} if role in self._frame_sizes else set())
            if len(known) > 1:
                raise ValueError(
                    f"{frames_of(role)} differ in size, {size_text(sorted(known))} in record {episode.record} of "
                    f"{episode.shard}: give {size_flag(role)}"
                )
            self._frame_sizes[role] = known.pop()


class _Instructions:
    """The distinct instructions seen, each with the vector it was shipped with, if any."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], int] = {}

    def ids(self, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """int64 (N,). Raises ValueError for vectors that are not finite."""
        if vectors is not None and not np.isfinite(vectors).all():
            raise ValueError("the instruction's vector holds values that are not finite")
        if texts.count(texts[0]) == len(texts) and (vectors is None or _all_alike(vectors)):  # as in most episodes
            return np.full(len(texts), self._id(texts[0], b"" if vectors is None else vectors[0].tobytes()))
        shipped = [b""] * len(texts) if vectors is None else [vector.tobytes() for vector in vectors]
        return np.array([self._id(text, vector) for text, vector in zip(texts, shipped, strict=True)])

    def table(self) -> pa.Table:
        """id, text and vector (the shipped float32s as bytes; empty if none was shipped) by id."""
        ordered = sorted(self._known.items(), key=lambda entry: entry[1])
        return pa.table(
            {
                "id": pa.array([number for _, number in ordered], pa.int64()),
                "text": pa.array([text for (text, _), _ in ordered], pa.string()),
                "vector": pa.array([vector for (_, vector), _ in ordered], pa.binary()),
            }
        )

    def _id(self, text: str, vector: bytes) -> int:
        number = self._known.get((text, vector))
        if number is None:
            number = self._known[text, vector] = instruction_id(text, vector)
        return number


def _all_alike(vectors_ND: np.ndarray) -> bool:
    """Whether all rows have the same bytes: 0 is not -0 here."""
    bits_ND = np.ascontiguousarray(vectors_ND).view(np.uint32)
    return bool((bits_ND[1:] == bits_ND[0]).all())


def _frames(task: ShardTask, role: str, episode: Episode) -> tuple[list[bytes], set[ImageSize]]:
    """Encoded frames of a camera, whole, at the size that is asked for; and the sizes that they have."""
    frames, sizes, path = [], set[ImageSize](), task.spec.all_cameras[role]
    of_video = bool(task.dataset.feature(path).codec)
    size = task.image_sizes[role]
    for step, source_frame in enumerate(cast(Iterable[bytes | np.ndarray], episode.steps[path])):
        try:
            encoded, its_size = _frame(task, size, source_frame, of_video=of_video)
        except Exception:
            with naming(f"{path} of step {step}"):
                raise
        frames.append(encoded)
        sizes.add(its_size)
    return frames, sizes


def _frame(
    task: ShardTask, size: ImageSize | None, source_frame: bytes | np.ndarray, *, of_video: bool
) -> tuple[bytes, ImageSize]:
    """A frame as its source encoded it, known to be whole, or at the asked size; and its size. One kept as numbers
    becomes PNG, one decoded from a video JPEG: its codec has lost more than JPEG of quality 95 does, and PNG takes five
    times the room."""
    if of_video and isinstance(source_frame, np.ndarray):
        height, width = size or source_frame.shape[:2]
        return encode_jpeg(resize_image(source_frame, height, width, task.resize)), ImageSize(height, width)
    encoded = source_frame if isinstance(source_frame, bytes) else encode_png(source_frame)
    if size is not None:
        resized = reencode(encoded, *size, task.resize)
        if resized is not encoded:
            return resized, size
    if encoded is source_frame:
        return encoded, require_whole_image(encoded, thoroughly=task.check_frames)
    return encoded, image_size(encoded)


def _reward(column: object, count: int) -> pa.Array:
    """float32 (N,), null without a reward."""
    if column is None:
        return pa.nulls(count, pa.float32())
    with np.errstate(over="ignore"):
        return pa.array(np.asarray(column).reshape(count).astype(np.float32))


def frames_of(role: str) -> str:
    """The frames of a camera in words; of the main one without its name."""
    return "frames" if role == MAIN_CAMERA else f"frames of camera {role}"


def size_flag(role: str) -> str:
    """The flag that brings frames of a camera to one size."""
    return "--image-size HxW" if role == MAIN_CAMERA else f"--image-size {role}=HxW"


def size_text(sizes: Sequence[tuple[int, ...]]) -> str:
    """Sizes (height, width) in words."""
    return " and ".join(f"{height}x{width}" for height, width in sizes)
