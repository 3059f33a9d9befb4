"""A store of image-text examples -> another with the best of them (RT-2, appendix B: WebLI's best tenth by similarity).

Two passes over the shards, each a Ray Data task a shard: the first finds out score, language and picture signature of
every example, then one process chooses among all of them (`selection`), the second writes what is kept. Shards stay
shards, so that the bytes do not depend on the number of workers; killed anywhere and run again, it goes on.
examples in = kept + filtered + duplicates + quarantined, each by reason, and `decisions.parquet` says it of every one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.conversion.resume import claimed, made_once, names_in, remove_progress
from preprocessing.conversion.run_shards import Claim, ReachRay, convert_shards, own_ray
from preprocessing.conversion.shard_report import ShardCounts, WebShardReport, read_report, report_name
from preprocessing.filtering.filter_config import FilterConfig
from preprocessing.filtering.languages import spoken
from preprocessing.filtering.marks import Marks, MarkTask, mark_shard, marks_name, opened, read_marks
from preprocessing.filtering.scorers import MODELS, DualEncoder, read_scores, scorer_parts
from preprocessing.filtering.selection import Selection, Verdict, select
from preprocessing.store.episode_store import QUARANTINE, ShardWriter, atomic_write
from preprocessing.store.file_system import FileSystem, absolute, file_system_of
from preprocessing.store.json_files import JsonObject
from preprocessing.store.json_records import to_text
from preprocessing.store.lineage import fingerprint
from preprocessing.store.manifest_file import MANIFEST, PROGRESS
from preprocessing.store.store_manifest import FilterAccount, WebCounts, WebManifest
from preprocessing.store.web_store import KIND, OF_EXAMPLES, WEB_SCHEMA_VERSION, WebStore, pictures_of

DECISIONS = "decisions.parquet"
_DECISION_SCHEMA = pa.schema(
    {
        "shard": pa.int32(),
        "row": pa.int64(),
        "example": pa.int32(),
        "verdict": pa.string(),
        "score": pa.float64(),
        "language": pa.string(),
        "original": pa.int64(),
    }
)
REASONS = {Verdict.LANGUAGE: "its language is not asked for", Verdict.SCORE: "its score is too low"}


@dataclass(frozen=True, kw_only=True)
class FilterSummary:
    """The closing account: examples_in = kept + filtered + duplicates + quarantined. `filtered` and `reasons` (of the
    quarantine) count by reason, `languages` those that are kept; `lowest_score` is the lowest that passed."""

    store: str
    source: str
    examples_in: int
    kept: int
    filtered: dict[str, int]
    duplicates: int
    quarantined: int
    reasons: dict[str, int]
    languages: dict[str, int]
    lowest_score: float | None
    images: int
    shards: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _WriteTask:
    """What the tasks of the second pass share."""

    store: str
    root: str


def filter_store(source: str, out: str, config: FilterConfig, reach_ray: ReachRay = own_ray) -> FilterSummary:
    """Filter the store `source` into one below `out`; both may be URLs. Raises ValueError or OSError, one sentence."""
    began = time.monotonic()
    store = opened(WebStore.open(source).root)
    _require_scores(store, config)
    manifest = store.manifest
    root = f"{absolute(str(out).rstrip('/'))}/{manifest.dataset}/{manifest.version}/{manifest.split}"
    if absolute(store.root.rstrip("/")) == root:
        raise ValueError(f"{out} is where the store itself lies: give another OUT")
    settings = _settings(store, config)
    filesystem, folder = file_system_of(root)

    def make() -> WebManifest:
        with claimed(filesystem, folder, settings):
            return _filtered(filesystem, folder, root, store, config, settings, reach_ray)

    made = made_once(filesystem, folder, settings, WebManifest, make)
    remove_progress(filesystem, folder)
    assert made.filtered is not None
    return FilterSummary(
        store=root,
        source=store.root,
        examples_in=made.counts.examples_in,
        kept=made.counts.examples_out,
        filtered=made.filtered.filtered,
        duplicates=made.duplicates,
        quarantined=made.counts.quarantined,
        reasons=made.filtered.quarantined,
        languages=made.filtered.languages,
        lowest_score=made.filtered.lowest_score,
        images=made.counts.images,
        shards=len(made.shards),
        seconds=time.monotonic() - began,
    )


def _require_scores(store: WebStore, config: FilterConfig) -> None:
    """Raise ValueError or OSError now for what would fail in a task."""
    kind, path = scorer_parts(config.scorer)
    if kind == "column" and "score" not in store.schema.names:
        raise ValueError(
            f"{store.root} has no column of scores: preprocess its source with --score FIELD, or give "
            f"--scorer file:PATH, clip:PATH or siglip:PATH"
        )
    if kind in MODELS:
        # Tasks of Ray load one each: what is only looked at here takes no GPU's memory.
        DualEncoder(folder=path, device=None if config.workers == 0 else "cpu").require()


def _settings(store: WebStore, config: FilterConfig) -> JsonObject:
    """Everything that decides what the store's bytes will be; the columns are those of the source."""
    kept = {key: value for key, value in store.manifest.settings.items() if key in ("score", "language", "pictures")}
    kind, path = scorer_parts(config.scorer)
    if kind == "file":
        kept["scores"] = hashlib.sha256(read_scores(path, count=store.num_examples).tobytes()).hexdigest()[:16]
    if kind in MODELS:
        kept["scorer_files"] = DualEncoder(folder=path).fingerprint()
    return {
        "schema_version": WEB_SCHEMA_VERSION,
        "kind": KIND,
        "row_group_rows": store.manifest.row_group_rows,
        "parent": {"store": store.root, "manifest": fingerprint(store.root)},
        **kept,
        "scorer": config.scorer,
        "keep": config.share(),
        "min_score": config.min_score,
        "languages": list(config.languages),
        "duplicates": config.duplicates,
        "duplicate_bits": config.duplicate_bits,
    }


def _filtered(
    filesystem: FileSystem,
    folder: str,
    root: str,
    store: WebStore,
    config: FilterConfig,
    settings: JsonObject,
    reach_ray: ReachRay,
) -> WebManifest:
    """Both passes, and the manifest."""
    total, progress = len(store.shards), f"{folder}/{PROGRESS}"
    units = {
        "total": total,
        "workers": config.workers,
        "units": ("examples", "rows"),
        "reach_ray": reach_ray,
        "claim": Claim(root=root, settings=settings),
    }
    scorer = _with_absolute_path(config.scorer)
    marking = MarkTask(store=store.root, root=root, scorer=scorer)
    done = names_in(filesystem, progress)
    missing = [index for index in range(total) if marks_name(index) not in done]
    gpu_share = config.gpu_share if scorer_parts(scorer)[0] in MODELS else 0.0
    convert_shards(partial(mark_shard, marking), missing, what="look", gpu_share=gpu_share, **units)
    marks = read_marks(filesystem, progress, total)
    if scorer_parts(scorer)[0] == "file":
        marks = marks.scored(read_scores(scorer_parts(scorer)[1], count=store.num_examples))
    same_text = {"pictures": False, "pairs": True, "keep": None}[config.duplicates]
    chosen = select(
        marks.examples,
        keep=config.share(),
        min_score=config.min_score,
        languages=config.languages,
        same_text=same_text,
        distance=config.duplicate_bits,
    )
    account = _account(marks, chosen)
    if not account.kept:
        raise ValueError(
            f"not one of {store.num_examples} examples would be kept ({account.in_words()}): "
            + (_languages_here(config, marks) or "raise --keep, lower --min-score, or give another --scorer")
        )
    _write_decisions(filesystem, folder, marks, chosen, total)
    missing = [index for index in range(total) if report_name(index) not in done]
    convert_shards(partial(_write_shard, _WriteTask(store=store.root, root=root)), missing, what="keep", **units)
    return _write_manifest(filesystem, folder, store, settings, marks, account)


def _with_absolute_path(scorer: str) -> str:
    kind, path = scorer_parts(scorer)
    return f"{kind}:{absolute(path.rstrip('/'))}" if path else kind


# --- What was decided ---


def _languages_here(config: FilterConfig, marks: Marks) -> str:
    """Which languages there are, where none of them is asked for."""
    language_N = marks.examples.language_N
    if not config.languages or spoken(language_N, config.languages).any():
        return ""
    found = ", ".join(f"{language} {count}" for language, count in Counter(language_N.tolist()).most_common(10))
    return f"--languages {' '.join(config.languages)} names none of those it has, {found}"


def _account(marks: Marks, chosen: Selection) -> FilterAccount:
    verdict_N = chosen.verdict_N
    languages = marks.examples.language_N[verdict_N == Verdict.KEPT]
    problems = (problem for problem in marks.problems if problem is not None)
    filtered = {reason: int((verdict_N == verdict).sum()) for verdict, reason in REASONS.items()}
    return FilterAccount(
        kept=int((verdict_N == Verdict.KEPT).sum()),
        filtered={reason: count for reason, count in filtered.items() if count},
        quarantined=dict(Counter(problems).most_common()),
        languages=dict(Counter(languages.tolist()).most_common()),
        languages_in=dict(Counter(marks.examples.language_N.tolist()).most_common()),
        lowest_score=chosen.lowest,
    )


def _write_decisions(filesystem: FileSystem, folder: str, marks: Marks, chosen: Selection, total: int) -> None:
    """One row an example, a row group a shard: what the second pass reads, and who wants to know why."""
    names = np.array([verdict.name.lower() for verdict in Verdict], object)
    table = pa.table(
        {
            "shard": pa.array(marks.shard_N, pa.int32()),
            "row": pa.array(marks.row_N, pa.int64()),
            "example": pa.array(marks.number_N, pa.int32()),
            "verdict": pa.array(names[chosen.verdict_N], pa.string()),
            "score": pa.array(marks.examples.score_N, pa.float64(), mask=~marks.examples.usable_N),
            "language": pa.array(marks.examples.language_N, pa.string()),
            "original": pa.array(chosen.original_N, pa.int64(), mask=chosen.original_N < 0),
        },
        schema=_DECISION_SCHEMA,
    )
    bounds = np.searchsorted(marks.shard_N, np.arange(total + 1))
    with (
        atomic_write(filesystem, f"{folder}/{DECISIONS}", temporary=f"{folder}/{PROGRESS}") as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), _DECISION_SCHEMA, compression="zstd") as writer,
    ):
        for index in range(total):
            writer.write_table(table.slice(bounds[index], bounds[index + 1] - bounds[index]), row_group_size=1 << 40)


# --- The second pass ---


def _write_shard(task: _WriteTask, index: int) -> ShardCounts:
    """Write what is kept of shard `index` and, last, its report."""
    store, (filesystem, root) = opened(task.store), file_system_of(task.root)
    progress = f"{root}/{PROGRESS}"
    shard = store.shards[index]
    with filesystem.open(f"{root}/{DECISIONS}") as decisions:
        table = pq.ParquetFile(decisions).read_row_group(index, columns=["row", "example", "verdict"])
    is_kept_N = np.array(table["verdict"].to_pylist(), object) == "kept"
    kept: dict[int, list[int]] = {}
    for row, example in zip(table["row"].to_numpy()[is_kept_N], table["example"].to_numpy()[is_kept_N], strict=True):
        kept.setdefault(int(row), []).append(int(example))
    counts: list[int] = []
    images = 0
    name = f"shard-{index:05d}-of-{len(store.shards):05d}.parquet"
    with (
        atomic_write(filesystem, f"{root}/{name}", temporary=progress) as file,
        ShardWriter(file, store.schema, row_group_rows=shard.row_group_rows) as writer,
    ):
        for group in sorted({row // shard.row_group_rows for row in kept}):
            first = group * shard.row_group_rows
            rows = store.read_rows(index, group, store.schema.names).to_pylist()
            left = [_reduced(row, kept[first + place]) for place, row in enumerate(rows) if first + place in kept]
            counts += [len(row["answer"]) for row in left]
            images += sum(len(pictures_of(row[store.picture_column])) for row in left)
            writer.append(pa.Table.from_pylist(left, schema=store.schema))
    report = WebShardReport(
        file=name,
        rows=writer.rows,
        bytes=file.num_bytes,
        sha256=file.sha256,
        source=Path(shard.path).name,
        episode_lengths=tuple(counts),
        examples_in=table.num_rows,
        images=images,
        quarantine=(),
    )
    with atomic_write(filesystem, f"{progress}/{report_name(index)}", temporary=progress) as out:
        out.write(to_text(report).encode())
    return ShardCounts(episodes=sum(counts), rows=writer.rows)


def _reduced(row: JsonObject, examples: list[int]) -> JsonObject:
    """A row with these of its examples."""
    return {key: [value[i] for i in examples] if key in OF_EXAMPLES else value for key, value in row.items()}


def _write_manifest(
    filesystem: FileSystem, folder: str, store: WebStore, settings: JsonObject, marks: Marks, account: FilterAccount
) -> WebManifest:
    """Write the quarantine and, last, the manifest. Raises RuntimeError if the account does not add up."""
    progress = f"{folder}/{PROGRESS}"
    reports = [read_report(WebShardReport, filesystem, progress, index) for index in range(len(store.shards))]
    examples_in, quarantined = store.num_examples, sum(account.quarantined.values())
    kept = sum(sum(report.episode_lengths) for report in reports)
    duplicates = examples_in - account.kept - sum(account.filtered.values()) - quarantined
    if kept != account.kept or duplicates < 0 or sum(report.examples_in for report in reports) != examples_in:
        raise RuntimeError(
            f"the account does not add up: {examples_in} examples in, {kept} written, {account.in_words()}"
        )
    lines = (
        {"shard": Path(store.shards[shard].path).name, "place": f"row {row}", "example": int(number), "reason": problem}
        for shard, row, number, problem in zip(marks.shard_N, marks.row_N, marks.number_N, marks.problems, strict=True)
        if problem is not None
    )
    with atomic_write(filesystem, f"{folder}/{QUARANTINE}", temporary=progress) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    source = store.manifest
    manifest = WebManifest(
        schema_version=WEB_SCHEMA_VERSION,
        kind=KIND,
        dataset=source.dataset,
        version=source.version,
        split=source.split,
        counts=WebCounts(
            examples_in=examples_in,
            examples_out=kept,
            quarantined=quarantined,
            images=sum(report.images for report in reports),
        ),
        duplicates=duplicates,
        row_group_rows=source.row_group_rows,
        shards=tuple(report.entry() for report in reports),
        settings=settings,
        filtered=account,
        rights=source.rights,
        most_pictures=source.most_pictures,
    )
    with atomic_write(filesystem, f"{folder}/{MANIFEST}", temporary=progress) as file:
        file.write(manifest.to_bytes())
    return manifest
