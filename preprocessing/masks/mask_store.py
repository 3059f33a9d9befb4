"""Marks for every episode of a store, from its first frame: a task a shard, resumable; the overlay comes last."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from preprocessing.conversion.embeddings import embed_texts
from preprocessing.conversion.run_shards import ReachRay, convert_shards, own_ray, require_gpu_share
from preprocessing.conversion.shard_report import ShardCounts, report_name
from preprocessing.masks.boxes import Boxes, read_boxes
from preprocessing.masks.overlay import MARKS_SCHEMA, write_overlay
from preprocessing.masks.owl import OwlDetector
from preprocessing.masks.phrases import phrase_of
from preprocessing.store.episode_store import EpisodeStore, atomic_write
from preprocessing.store.file_system import FileSystem, file_system_of
from preprocessing.store.images import decode_image
from preprocessing.store.json_files import JsonObject, parsed
from preprocessing.store.lineage import fingerprint

DETECTORS = ("owlvit:PATH", "boxes:FILE")
_WORK = ".masks"  # in the store's folder, until the overlay is published
_NO_OBJECT = "its instruction names no object"
_NO_BOX = "the file has no box for it"


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Settings of the marks."""

    detector: str
    """owlvit:PATH, a folder with an OWL-ViT or OWLv2 of transformers, which looks for the objects that the instruction
    names; or boxes:FILE, JSON lines {"episode": 0, "box": [x0, y0, x1, y1]} in pixels of the stored frame, with
    "second" and "verb" where there are."""
    threshold: float = 0.1
    """Lowest score, 0 to 1, of a box of the detector."""
    workers: int | None = None
    """Shards worked on at once; by default as many as Ray has CPUs, 0 works in this process without Ray."""
    gpu_share: float = 0.25
    """Share of a GPU that a worker with an owlvit takes, where Ray has GPUs free. 0.25 puts four workers on each; 0
    computes on CPUs."""

    def __post_init__(self) -> None:
        kind, _, path = self.detector.partition(":")
        if kind not in ("owlvit", "boxes") or not path:
            raise ValueError(f"--detector {self.detector} is not one of {', '.join(DETECTORS)}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold must be between 0 and 1, got {self.threshold}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        require_gpu_share(self.gpu_share)

    @property
    def kind(self) -> str:
        return self.detector.partition(":")[0]

    @property
    def path(self) -> str:
        return self.detector.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class MaskSummary:
    """The account: episodes = marked + not marked, by reason; `verbs` are the instructions that are left."""

    store: str
    episodes: int
    marked: int
    with_second: int
    not_marked: dict[str, int]
    verbs: dict[str, int]
    shards: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _MaskTask:
    store: str
    config: MaskConfig


def mask_store(store: str, config: MaskConfig, reach_ray: ReachRay = own_ray) -> MaskSummary:
    """Mark the objects of every episode of `store`, beside its frames. Raises ValueError or OSError, one sentence."""
    began = time.monotonic()
    opened = EpisodeStore.open(store)
    if config.kind == "owlvit":
        # Tasks of Ray load one each: what is only looked at here takes no GPU's memory.
        OwlDetector(folder=config.path, device=None if config.workers == 0 else "cpu").require()
    else:
        _boxes(opened, config)
    settings = _settings(opened, config)
    filesystem, root = file_system_of(opened.root)
    work, total = f"{root}/{_WORK}", len(opened.shards)
    _make_room(filesystem, work, settings)
    missing = [index for index in range(total) if not filesystem.exists(f"{work}/{report_name(index)}")]
    task = _MaskTask(store=opened.root, config=config)
    gpu_share = config.gpu_share if config.kind == "owlvit" else 0.0
    settled = {"total": total, "workers": config.workers, "units": ("episodes", "episodes"), "what": "mask"}
    convert_shards(partial(_mark_shard, task), missing, gpu_share=gpu_share, reach_ray=reach_ray, **settled)
    marks = [mark for index in range(total) for mark in _read(filesystem, f"{work}/{report_name(index)}")["marks"]]
    table = pa.Table.from_pylist([{"episode": n, **mark} for n, mark in enumerate(marks)], schema=MARKS_SCHEMA)
    verbs = Counter(mark["verb"] for mark in marks if mark["problem"] is None)
    if not verbs:
        filesystem.rm(work, recursive=True)
        reason = Counter(mark["problem"] for mark in marks).most_common(1)[0][0]
        raise ValueError(f"not one of {len(marks)} episodes of {opened.root} can be marked ({reason})")
    vectors = embed_texts(opened.manifest.encoder, sorted(verbs))
    write_overlay(opened, table, dict(zip(sorted(verbs), vectors, strict=True)), settings)
    with suppress(FileNotFoundError):
        filesystem.rm(work, recursive=True)
    return MaskSummary(
        store=opened.root,
        episodes=len(marks),
        marked=sum(verbs.values()),
        with_second=sum(mark["second_x"] is not None for mark in marks),
        not_marked=dict(Counter(mark["problem"] for mark in marks if mark["problem"] is not None).most_common()),
        verbs=dict(verbs.most_common()),
        shards=total,
        seconds=time.monotonic() - began,
    )


def _boxes(store: EpisodeStore, config: MaskConfig) -> dict[int, Boxes]:
    image = store.contract.image
    return read_boxes(config.path, height=image.height, width=image.width, episodes=store.num_episodes)


def _settings(store: EpisodeStore, config: MaskConfig) -> JsonObject:
    settings: JsonObject = {"manifest": fingerprint(store.root), "detector": config.detector}
    if config.kind == "owlvit":
        return {**settings, "threshold": config.threshold}
    filesystem, path = file_system_of(config.path)
    return {**settings, "sha256": hashlib.sha256(filesystem.cat_file(path)).hexdigest()}


def _make_room(filesystem: FileSystem, work: str, settings: JsonObject) -> None:
    """Leave the marks of the same work that was interrupted, or none."""
    path = f"{work}/settings.json"
    if filesystem.exists(path):
        if _read(filesystem, path) == settings:
            return
        filesystem.rm(work, recursive=True)
    filesystem.makedirs(work, exist_ok=True)
    with atomic_write(filesystem, path, temporary=work) as file:
        file.write(json.dumps(settings).encode())


def _read(filesystem: FileSystem, path: str) -> JsonObject:
    return parsed(filesystem.cat_file(path), path, remedy="delete the folder and run rtp mask again")


# --- One shard ---


def _mark_shard(task: _MaskTask, index: int) -> ShardCounts:
    """Write the marks of the episodes of shard `index`, in order."""
    store, config = EpisodeStore.open(task.store), task.config
    boxes = _boxes(store, config) if config.kind == "boxes" else None
    owl = OwlDetector(folder=config.path) if config.kind == "owlvit" else None
    first = sum(len(shard.episode_lengths) for shard in store.shards[:index])
    texts = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
    marks = []
    for episode in range(len(store.shards[index].episode_lengths)):
        row = store.read_episode(index, episode, ["image", "instruction"] if owl else ["instruction"]).slice(0, 1)
        text = texts[row["instruction"][0].as_py()]
        if owl is not None:
            marks.append(_detected(owl, row["image"][0].as_py(), text, config.threshold))
        else:
            marks.append(_given((boxes or {}).get(first + episode), text))
    filesystem, root = file_system_of(store.root)
    with atomic_write(filesystem, f"{root}/{_WORK}/{report_name(index)}", temporary=f"{root}/{_WORK}") as file:
        file.write(json.dumps({"marks": marks}).encode())
    return ShardCounts(episodes=len(marks), rows=len(marks))


def _mark(
    verb: str | None, place: tuple[float, float] | None, second: tuple[float, float] | None, problem: str | None
) -> JsonObject:
    x, y = place or (None, None)
    second_x, second_y = second or (None, None)
    return {"verb": verb, "x": x, "y": y, "second_x": second_x, "second_y": second_y, "problem": problem}


def _given(boxes: Boxes | None, instruction: str) -> JsonObject:
    phrase = phrase_of(instruction)
    if boxes is None:
        return _mark(None, None, None, _NO_BOX)
    verb = boxes.verb or (phrase.verb if phrase else None)
    if verb is None:
        return _mark(None, None, None, f"{_NO_OBJECT}, and the file no verb")
    return _mark(verb, boxes.centre, boxes.second, None)


def _detected(owl: OwlDetector, encoded: bytes, instruction: str, threshold: float) -> JsonObject:
    phrase = phrase_of(instruction)
    if phrase is None:
        return _mark(None, None, None, _NO_OBJECT)
    names = [phrase.object, *([phrase.second] if phrase.second else [])]
    found = owl.detect(decode_image(encoded), names)
    if found[0].score < threshold:
        return _mark(None, None, None, "its object is not found in its first frame")
    second = found[1].centre if len(found) > 1 and found[1].score >= threshold else None
    return _mark(phrase.verb, found[0].centre, second, None)
