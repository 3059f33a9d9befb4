"""Image-text data -> a store of examples: one Ray Data task per shard, resumable, with a closing account.

Images are read through once to know that they can be decoded; texts must be there and of bearable length. What fails
goes to quarantine with its reason, example by example: examples in = examples out + quarantined + duplicates.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from preprocessing.conversion.resume import claimed, finished, names_in, remove_progress
from preprocessing.conversion.run_shards import Claim, ReachRay, convert_shards, own_ray
from preprocessing.conversion.shard_report import (
    QuarantinedExample,
    ShardCounts,
    WebShardReport,
    read_report,
    report_name,
)
from preprocessing.source_rights import rights_of
from preprocessing.store.episode_store import QUARANTINE, EpisodeStore, ShardWriter, atomic_write
from preprocessing.store.file_system import absolute, file_system_of
from preprocessing.store.images import image_size, require_whole_image
from preprocessing.store.json_files import JsonObject
from preprocessing.store.json_records import to_text
from preprocessing.store.lineage import fingerprint
from preprocessing.store.manifest_file import MANIFEST, PROGRESS
from preprocessing.store.parallel_reads import in_parallel
from preprocessing.store.store_manifest import WebCounts, WebManifest
from preprocessing.store.web_store import (
    EXTRA_COLUMNS,
    KIND,
    PICTURE,
    PICTURES,
    WEB_ROW_GROUP_ROWS,
    WEB_SCHEMA_VERSION,
    picture_cell,
    web_schema,
)
from preprocessing.web.extra_fields import ExtraFields
from preprocessing.web.prediction_tasks import MOST_PICTURES, TASKS, Questions, Task, missing_for
from preprocessing.web.records import WebExample, WebRecord
from preprocessing.web.sources import Piece, WebSource, episodes
from preprocessing.web.texts import PLACEHOLDER
from preprocessing.web.web_config import WebConvertConfig as WebConvertConfig


@dataclass(frozen=True, kw_only=True)
class WebSummary:
    """The closing account: examples_in = examples_out + quarantined + duplicates. `images` are the pictures
    of all rows, `unread` counts members of archives that nothing reads, by their extension. `not_asked` are the tasks
    that a store of episodes cannot answer, with what it lacks."""

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
    not_asked: dict[Task, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What all shards of a conversion share."""

    source: WebSource
    config: WebConvertConfig
    root: str
    pieces: tuple[Piece, ...]

    def schema(self) -> pa.Schema:
        return web_schema(
            score=bool(self.config.score),
            language=bool(self.config.language),
            several_pictures=self.most_pictures > 1,
        )

    @property
    def most_pictures(self) -> int:
        return MOST_PICTURES if self.config.format == "episodes" else self.config.pictures

    def shard_file(self, index: int) -> str:
        return f"shard-{index:05d}-of-{len(self.pieces):05d}.parquet"


def convert_web(source: str, out: str, config: WebConvertConfig, reach_ray: ReachRay = own_ray) -> WebSummary:
    """Convert one split of the image-text data in folder `source` into a store below `out`; both may be URLs.

    `reach_ray` is called once there is work for it. Raises ValueError or OSError with one sentence for what a user can
    mend.
    """
    began = time.monotonic()
    opened, not_asked = _opened(source, config)
    of_episodes = f"{episodes(opened).name}_questions" if config.format == "episodes" else None
    name = config.dataset or of_episodes or Path(absolute(source)).name
    root = absolute(f"{str(out).rstrip('/')}/{name}/{config.version}/{opened.split}")
    if root == absolute(str(source)).rstrip("/"):
        raise ValueError(f"{out} is where the store itself lies: give another OUT, or another --dataset")
    task = _Task(source=opened, config=config, root=root, pieces=opened.pieces())
    settings = _settings(task, name)
    filesystem, folder = file_system_of(root)
    missing: list[int] = []
    if filesystem.exists(f"{folder}/{MANIFEST}"):
        manifest = finished(filesystem, folder, settings, WebManifest)
    else:
        try:
            with claimed(filesystem, folder, settings):
                done = names_in(filesystem, f"{folder}/{PROGRESS}")
                missing = [i for i in range(len(task.pieces)) if report_name(i) not in done]
                convert_one = partial(_convert_piece, task)
                units = ("records", "records")
                settled = {"total": len(task.pieces), "workers": config.workers, "units": units}
                claim = Claim(root=root, settings=settings)
                convert_shards(convert_one, missing, reach_ray=reach_ray, claim=claim, **settled)
                manifest = _write_manifest(task, settings)
        except (OSError, ValueError):
            if not filesystem.exists(f"{folder}/{MANIFEST}"):
                raise
            # another process was quicker with the same work
            manifest = finished(filesystem, folder, settings, WebManifest)
    remove_progress(filesystem, folder)
    return WebSummary(
        store=root,
        dataset=name,
        split=opened.split,
        **asdict(manifest.counts),
        duplicates=manifest.duplicates,
        unread=manifest.unread,
        shards=len(manifest.shards),
        shards_converted=len(missing),
        seconds=time.monotonic() - began,
        not_asked=not_asked,
    )


def _opened(source: str, config: WebConvertConfig) -> tuple[WebSource, dict[Task, str]]:
    """The source, and of episodes the tasks that their store cannot answer. Raises ValueError for one asked for."""
    opened = WebSource(
        folder=absolute(source),
        format=config.format,
        split=config.split or _default_split(source, config),
        images=absolute(config.images) if config.images else "",
        extra=ExtraFields(score=config.score, language=config.language, most_pictures=config.pictures),
    )
    if config.format != "episodes":
        return opened, {}
    lacks = missing_for(episodes(opened))
    for task, lack in lacks.items():
        if task in config.tasks:
            raise ValueError(f"--tasks {task}: {source} cannot answer it, {lack}")
    answerable: list[Task] = [task for task in TASKS if task not in lacks]
    questions = Questions(tasks=config.tasks or tuple(answerable), per_episode=config.questions)
    return replace(opened, questions=questions), {} if config.tasks else lacks


def _default_split(source: str, config: WebConvertConfig) -> str:
    """That of training; of episodes that of the store, where `source` holds one alone."""
    if config.format == "episodes":
        with suppress(ValueError):  # it holds several, or what is said when it is opened
            return EpisodeStore.open(absolute(source)).manifest.split
    return "train"


def _settings(task: _Task, name: str) -> JsonObject:
    """Everything that decides what the store's bytes will be."""
    config = task.config
    return {
        "schema_version": WEB_SCHEMA_VERSION,
        "kind": KIND,
        "row_group_rows": WEB_ROW_GROUP_ROWS,
        "dataset": name,
        "version": config.version,
        "split": task.source.split,
        "format": config.format,
        "images": config.images,
        **({"pictures": task.most_pictures} if task.most_pictures > 1 else {}),
        **(_asked(task) if config.format == "episodes" else {}),
        **({"score": config.score} if config.score else {}),
        **({"language": config.language} if config.language else {}),
        "limits": [config.min_side, config.max_side, config.max_characters],
        "source": [[piece.name, piece.num_bytes, piece.start, piece.stop] for piece in task.pieces],
    }


def _asked(task: _Task) -> JsonObject:
    store, questions = episodes(task.source), task.source.questions
    return {
        "parent": {"store": store.root, "manifest": fingerprint(store.root)},
        "tasks": list(questions.tasks),
        "questions": questions.per_episode,
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
        valued=dict(account.valued),
        most_pictures=account.most_pictures,
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
        self.examples_in = self.images = self.most_pictures = self.duplicates = 0
        self.unread: Counter[str] = Counter()
        self.valued: Counter[str] = Counter()
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
        self.images += len(record.images)
        self.valued.update(name for e in kept for name in EXTRA_COLUMNS if getattr(e, name) is not None)
        self.most_pictures = max(self.most_pictures, len(record.images))
        column = PICTURES if PICTURES in self._schema.names else PICTURE
        row = {
            "record": self._records - 1,
            column: picture_cell(record.images, self._schema),
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
    unseen = next((p for image in record.images if (p := _image_problem(image, config))), None)
    return [problem or unseen for problem in problems]


def _image_problem(encoded: bytes, config: WebConvertConfig) -> str | None:
    """Why an image cannot be used, or None."""
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
    _require_valued(task.config, reports)
    with atomic_write(filesystem, f"{root}/{QUARANTINE}", temporary=temporary) as file:
        for report in reports:
            lines = ({"shard": report.file, **asdict(example)} for example in report.quarantine)
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    is_of_episodes = task.config.format == "episodes"
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
        rights=episodes(task.source).manifest.rights if is_of_episodes else rights_of(task.source.folder),
        most_pictures=max(report.most_pictures for report in reports) if task.most_pictures > 1 else 0,
    )
    with atomic_write(filesystem, f"{root}/{MANIFEST}", temporary=temporary) as file:
        file.write(manifest.to_bytes())
    return manifest


def _require_valued(config: WebConvertConfig, reports: list[WebShardReport]) -> None:
    """Raise ValueError for a field that no example has, whose name may be mistyped; not where a report does not say."""
    valued = [report.valued for report in reports if report.valued is not None]
    if len(valued) < len(reports):
        return
    for column, field_name, what in (("score", config.score, "number"), ("language", config.language, "text")):
        if field_name and not any(counts.get(column) for counts in valued):
            raise ValueError(
                f"--{column} {field_name}: no example has a {what} in a field of that very name, capitals included"
            )


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
