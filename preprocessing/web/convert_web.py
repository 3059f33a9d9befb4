"""Image-text data -> a store of examples: one Ray Data task per shard, resumable, with a closing account.

Images are read through once to know that they can be decoded; texts must be there and of bearable length. What fails
goes to quarantine with its reason, example by example: examples in = examples out + quarantined + duplicates.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa

from preprocessing.conversion.resume import claimed, finished, names_in
from preprocessing.conversion.run_shards import Claim, ReachRay, convert_shards, own_ray
from preprocessing.conversion.shard_report import (
    QuarantinedExample,
    ShardCounts,
    WebShardReport,
    read_report,
    report_name,
)
from preprocessing.source_rights import rights_of
from preprocessing.store.episode_store import QUARANTINE, ShardWriter, atomic_write
from preprocessing.store.file_system import absolute, file_system_of
from preprocessing.store.images import image_size, require_whole_image
from preprocessing.store.json_files import JsonObject
from preprocessing.store.json_records import to_text
from preprocessing.store.manifest_file import MANIFEST, PROGRESS
from preprocessing.store.parallel_reads import in_parallel
from preprocessing.store.store_manifest import WebCounts, WebManifest
from preprocessing.store.web_store import EXTRA_COLUMNS, KIND, WEB_ROW_GROUP_ROWS, WEB_SCHEMA_VERSION, web_schema
from preprocessing.web.extra_fields import ExtraFields
from preprocessing.web.records import WebExample, WebRecord
from preprocessing.web.sources import WITH_EXTRA_FIELDS, Format, Piece, WebSource
from preprocessing.web.texts import PLACEHOLDER


@dataclass(frozen=True, kw_only=True)
class WebConvertConfig:
    """Settings of a conversion of image-text data."""

    format: Format
    """Layout of SOURCE: vqav2, okvqa, gqa, coco (captions), easy_vqa, jsonl, llava, webdataset (tars) or parquet."""
    split: str = "train"
    """Split to convert: files and folders that carry its exact name (val is also val2014, never test-dev or val_seen),
    or all if none is named after a split. Of GQA, val is all questions, val_balanced those alone."""
    images: str | None = None
    """Folder of the images, if they do not lie below SOURCE (formats with annotations in JSON)."""
    dataset: str | None = None
    """Name of the store; by default the name of SOURCE's folder."""
    version: str = "1.0.0"
    """Version that the store is filed under."""
    min_side: int = 8
    """Smallest side of an image in pixels."""
    max_side: int = 8192
    """Largest side of an image in pixels."""
    max_characters: int = 1000
    """Longest question or answer."""
    score: str = ""
    """Field of the source with the similarity of picture and text (jsonl, llava, webdataset, parquet), a number: it
    goes into the store's column score, which rtp filter reads."""
    language: str = ""
    """Field of the source with the language of the text; it goes into the store's column language."""
    workers: int | None = None
    """Shards converted at once; by default as many as Ray has CPUs, 0 converts in this process without Ray."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_side <= self.max_side:
            raise ValueError(f"--min-side {self.min_side} must be between 1 and --max-side {self.max_side}")
        if self.max_characters < 1:
            raise ValueError(f"--max-characters must be at least 1, got {self.max_characters}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        if (self.score or self.language) and self.format not in WITH_EXTRA_FIELDS:
            raise ValueError(
                f"--score and --language are for {', '.join(WITH_EXTRA_FIELDS)}: {self.format} has no such field"
            )
        for flag, name in (("split", self.split), ("dataset", self.dataset), ("version", self.version)):
            if name is not None and not re.fullmatch(r"[^\W_][\w.+-]*", name):
                raise ValueError(f"--{flag} {name!r} must be letters, digits and . _ + -: it names a folder")


@dataclass(frozen=True, kw_only=True)
class WebSummary:
    """The closing account: examples_in = examples_out + quarantined + duplicates. `images` are rows with an image,
    `unread` counts members of archives that nothing reads, by their extension."""

    store: str
    dataset: str
    split: str
    examples_in: int
    examples_out: int
    quarantined: int
    images: int
    shards: int
    shards_converted: int
    seconds: float
    duplicates: int = 0
    unread: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What all shards of a conversion share."""

    source: WebSource
    config: WebConvertConfig
    root: str
    pieces: tuple[Piece, ...]

    def schema(self) -> pa.Schema:
        return web_schema(score=bool(self.config.score), language=bool(self.config.language))

    def shard_file(self, index: int) -> str:
        return f"shard-{index:05d}-of-{len(self.pieces):05d}.parquet"


def convert_web(source: str, out: str, config: WebConvertConfig, reach_ray: ReachRay = own_ray) -> WebSummary:
    """Convert one split of the image-text data in folder `source` into a store below `out`; both may be URLs.

    `reach_ray` is called once there is work for it. Raises ValueError or OSError with one sentence for what a user can
    mend.
    """
    began = time.monotonic()
    name = config.dataset or Path(absolute(source)).name
    images = absolute(config.images) if config.images else ""
    opened = WebSource(
        folder=absolute(source), format=config.format, split=config.split, images=images, extra=_extra(config)
    )
    root = absolute(f"{str(out).rstrip('/')}/{name}/{config.version}/{config.split}")
    task = _Task(source=opened, config=config, root=root, pieces=opened.pieces())
    settings = _settings(task, name)
    filesystem, folder = file_system_of(root)
    if filesystem.exists(f"{folder}/{MANIFEST}"):
        manifest = finished(filesystem, folder, settings, WebManifest)
        missing = []
    else:
        with claimed(filesystem, folder, settings):
            done = names_in(filesystem, f"{folder}/{PROGRESS}")
            missing = [i for i in range(len(task.pieces)) if report_name(i) not in done]
            convert_one = partial(_convert_piece, task)
            units = ("records", "records")
            settled = {"total": len(task.pieces), "workers": config.workers, "units": units}
            claim = Claim(root=root, settings=settings)
            convert_shards(convert_one, missing, reach_ray=reach_ray, claim=claim, **settled)
            manifest = _write_manifest(task, settings)
    if filesystem.exists(f"{folder}/{PROGRESS}"):
        filesystem.rm(f"{folder}/{PROGRESS}", recursive=True)
    return WebSummary(
        store=root,
        dataset=name,
        split=config.split,
        **asdict(manifest.counts),
        duplicates=manifest.duplicates,
        unread=manifest.unread,
        shards=len(manifest.shards),
        shards_converted=len(missing),
        seconds=time.monotonic() - began,
    )


def _extra(config: WebConvertConfig) -> ExtraFields:
    return ExtraFields(score=config.score, language=config.language)


def _settings(task: _Task, name: str) -> JsonObject:
    """Everything that decides what the store's bytes will be."""
    config = task.config
    return {
        "schema_version": WEB_SCHEMA_VERSION,
        "kind": KIND,
        "row_group_rows": WEB_ROW_GROUP_ROWS,
        "dataset": name,
        "version": config.version,
        "split": config.split,
        "format": config.format,
        "images": config.images,
        **({"score": config.score} if config.score else {}),
        **({"language": config.language} if config.language else {}),
        "limits": [config.min_side, config.max_side, config.max_characters],
        "source": [[piece.name, piece.num_bytes, piece.start, piece.stop] for piece in task.pieces],
    }


# --- One shard ---


def _convert_piece(task: _Task, index: int) -> ShardCounts:
    """Write shard `index` and, last, its report."""
    filesystem, root = file_system_of(task.root)
    progress = f"{root}/{PROGRESS}"
    account = _Account(task.config, task.schema())
    with (
        atomic_write(filesystem, f"{root}/{task.shard_file(index)}", temporary=progress) as file,
        ShardWriter(file, task.schema(), row_group_rows=WEB_ROW_GROUP_ROWS) as writer,
    ):
        for record in task.source.read(task.pieces[index]):
            table = account.take(record)
            if table is not None:
                writer.append(table)
    report = WebShardReport(
        file=task.shard_file(index),
        rows=writer.rows,
        bytes=file.num_bytes,
        sha256=file.sha256,
        source=task.pieces[index].name,
        episode_lengths=tuple(account.counts),
        examples_in=account.examples_in,
        images=account.images,
        duplicates=account.duplicates,
        unread=dict(account.unread),
        quarantine=tuple(account.quarantine),
    )
    with atomic_write(filesystem, f"{progress}/{report_name(index)}", temporary=progress) as file:
        file.write(to_text(report).encode())
    return ShardCounts(episodes=len(report.episode_lengths), rows=report.rows)


class _Account:
    """What accumulates over the records of one piece."""

    def __init__(self, config: WebConvertConfig, schema: pa.Schema) -> None:
        self._config = config
        self._schema = schema
        self._records = 0
        self.counts: list[int] = []
        self.examples_in = self.images = self.duplicates = 0
        self.unread: Counter[str] = Counter()
        self.quarantine: list[QuarantinedExample] = []

    def take(self, record: WebRecord) -> pa.Table | None:
        """The row of a record, or None if nothing of it is left."""
        self._records += 1
        self.examples_in += len(record.examples) + record.duplicates
        self.duplicates += record.duplicates
        self.unread.update(record.unread)
        problems = _problems(record, self._config)
        self._leave_out(record, problems)
        kept = [e for e, problem in zip(record.examples, problems, strict=True) if problem is None]
        if not kept:
            return None
        self.counts.append(len(kept))
        self.images += record.image is not None
        row = {
            "record": self._records - 1,
            "image": record.image,
            "prompt": [example.prompt.strip() for example in kept],
            "answer": [example.answer.strip() for example in kept],
            "references": [[text.strip() for text in example.references if text.strip()] for example in kept],
        }
        row |= {
            name: [getattr(example, name) for example in kept] for name in EXTRA_COLUMNS if name in self._schema.names
        }
        return pa.Table.from_pylist([row], schema=self._schema)

    def _leave_out(self, record: WebRecord, problems: list[str | None]) -> None:
        """`example` counts the examples of one place."""
        numbers: Counter[str] = Counter()
        for example, problem in zip(record.examples, problems, strict=True):
            place = example.place or record.place
            if problem is not None:
                self.quarantine.append(QuarantinedExample(place=place, example=numbers[place], reason=problem))
            numbers[place] += 1


def _problems(record: WebRecord, config: WebConvertConfig) -> list[str | None]:
    """Why each example of a record cannot be used, or None."""
    if record.problem is not None:
        return [record.problem] * len(record.examples)
    problems = [example.problem or _text_problem(example, config) for example in record.examples]
    if None not in problems:
        return problems
    unseen = _image_problem(record.image, config)
    return [problem or unseen for problem in problems]


def _image_problem(encoded: bytes | None, config: WebConvertConfig) -> str | None:
    """Why an image cannot be used, or None; a record without an image is language only and fine."""
    if encoded is None:
        return None
    try:
        height, width = image_size(encoded)
        if min(height, width) < config.min_side or max(height, width) > config.max_side:
            return f"its image is {height}x{width} pixels, not between {config.min_side} and {config.max_side}"
        require_whole_image(encoded)
    except ValueError as error:
        return f"its image cannot be decoded ({error})"
    return None


def _text_problem(example: WebExample, config: WebConvertConfig) -> str | None:
    if not example.answer.strip():
        return "its answer is empty"
    if PLACEHOLDER in example.prompt or PLACEHOLDER in example.answer:
        return f"its text holds {PLACEHOLDER}, which stands for a picture"
    try:
        "".join((example.prompt, example.answer, *example.references)).encode()
    except UnicodeEncodeError:
        return "its text holds half a character (a lone surrogate)"
    longest = max(len(example.prompt), len(example.answer))
    if longest > config.max_characters:
        return f"its text has {longest} characters, at most {config.max_characters} are kept"
    return None


# --- The manifest ---


def _write_manifest(task: _Task, settings: JsonObject) -> WebManifest:
    """Write quarantine and, last, the manifest. Raises ValueError if no example is left."""
    filesystem, root = file_system_of(task.root)
    temporary = f"{root}/{PROGRESS}"
    reports = list(
        in_parallel(lambda index: read_report(WebShardReport, filesystem, temporary, index), len(task.pieces))
    )
    counts = _counts(reports)
    with atomic_write(filesystem, f"{root}/{QUARANTINE}", temporary=temporary) as file:
        for report in reports:
            lines = ({"shard": report.file, **asdict(example)} for example in report.quarantine)
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    manifest = WebManifest(
        schema_version=WEB_SCHEMA_VERSION,
        kind=KIND,
        dataset=settings["dataset"],
        version=settings["version"],
        split=settings["split"],
        counts=counts,
        duplicates=sum(report.duplicates for report in reports),
        unread=dict(sum((Counter(report.unread) for report in reports), Counter())),
        row_group_rows=WEB_ROW_GROUP_ROWS,
        shards=tuple(report.entry() for report in reports),
        settings=settings,
        rights=rights_of(task.source.folder),
    )
    with atomic_write(filesystem, f"{root}/{MANIFEST}", temporary=temporary) as file:
        file.write(manifest.to_bytes())
    return manifest


def _counts(reports: list[WebShardReport]) -> WebCounts:
    """The account. Raises RuntimeError if it does not add up, ValueError if no example is left."""
    taken = sum(report.examples_in for report in reports)
    kept = sum(sum(report.episode_lengths) for report in reports)
    left_out = sum(len(report.quarantine) for report in reports)
    again = sum(report.duplicates for report in reports)
    if taken != kept + left_out + again:
        raise RuntimeError(
            f"the account does not add up: {taken} examples in, {kept} out, {left_out} left out, {again} duplicates"
        )
    if kept == 0:
        first = next((example.reason for report in reports for example in report.quarantine), "the split is empty")
        raise ValueError(f"not one of {taken} examples can be used ({first}): is --format the right one?")
    images = sum(report.images for report in reports)
    return WebCounts(examples_in=taken, examples_out=kept, quarantined=left_out, images=images)
