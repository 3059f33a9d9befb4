"""Episodes in shards -> an episode store: a Ray Data task per shard (large ones in parts), resumable, with an account.

Every shard's Parquet file and report appear atomically, the manifest last. Killed anywhere and run again, a conversion
does only the missing shards and ends with the same bytes; a finished store is left as it is. Another source, spec or
setting in the same folder is refused.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from preprocessing import dataset_spec
from preprocessing.audit.store_audit import AUDIT, audit, blocking, save
from preprocessing.conversion.embeddings import Encoder, UseEncoder, embed_texts, load_encoder
from preprocessing.conversion.fit import require_fit
from preprocessing.conversion.frame_choice import FrameSizes, camera_names, own_roles
from preprocessing.conversion.manifest import counted_steps, write_manifest
from preprocessing.conversion.resume import claimed, finished, names_in, remove_progress, without_verdict
from preprocessing.conversion.run_shards import Claim, ReachRay, convert_shards, own_ray
from preprocessing.conversion.shard_conversion import ShardTask, convert_shard
from preprocessing.conversion.shard_report import report_name
from preprocessing.conversion.shipped_vectors import require_agreement, why_not_kept
from preprocessing.dataset_spec import DatasetSpec
from preprocessing.episode_source import EpisodeSource, open_source
from preprocessing.rlds import SourceShard, open_folder
from preprocessing.saved_model.imported_encoder import ImportedEncoder
from preprocessing.spec_file import read_spec
from preprocessing.store.episode_store import ROW_GROUP_ROWS, SCHEMA_VERSION, EpisodeStore, SourceField, StoreLayout
from preprocessing.store.file_system import absolute
from preprocessing.store.images import Resize
from preprocessing.store.json_files import JsonObject
from preprocessing.store.manifest_file import MANIFEST, PROGRESS
from preprocessing.store.shard_files import reaching
from preprocessing.store.step_counts import StepCounts
from preprocessing.store.store_manifest import StoreManifest


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Settings of a conversion."""

    split: str = "train"
    """Split to convert, as dataset_info.json names it, or a slice of its records: train[:1000], train[90%:]. The store
    of a slice is named after its records, such as train-0-1000."""
    dataset: str | None = None
    """Name of the dataset spec, or a .yaml file with one; by default the name that dataset_info.json records, for
    V-D4RL what its format says."""
    encoder: str | None = None
    """Instruction encoder: dataset (the vectors that the episodes ship; the default if they do), use-multilingual
    (the default elsewhere), use, a folder that rtp import-encoder wrote, sentence-transformers:MODEL, or hash, which
    is for tests and knows no meaning."""
    use_model: str | None = None
    """Folder, .tar.gz or URL of the Universal Sentence Encoder's SavedModel; by default TF-Hub's large/5."""
    image_size: str | None = None
    """Height x width of stored frames in pixels, such as 256x320, of each camera another with 256x320,wrist=128x128;
    by default frames are stored untouched."""
    resize: Resize = "pad"
    """How frames of another size are resized: pad with black (RT-1-X), squash, or crop the middle."""
    cameras: tuple[str, ...] = ("image",)
    """Cameras to store by role, such as image wrist; image is the main one. A policy reads those alone that are
    stored."""
    limit: int | None = None
    """Episodes to convert at most, from the beginning of the split."""
    check_crc: bool = True
    """Check the CRC of every record."""
    check_frames: bool = True
    """Read every frame through to its end, which finds frames that were damaged before they were recorded. Without it
    only their headers and last bytes are looked at, which takes a third of the time."""
    max_shard_mb: int = 512
    """Source shards larger than this, in MiB, are divided among tasks by records; each part is a file of the store."""
    workers: int | None = None
    """Shards converted at once; by default as many as Ray has CPUs, 0 converts in this process without Ray."""

    def __post_init__(self) -> None:
        FrameSizes.parse(self.image_size)
        camera_names(self.cameras)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1 episode, got {self.limit}")
        if self.max_shard_mb < 1:
            raise ValueError(f"--max-shard-mb must be at least 1 MiB, got {self.max_shard_mb}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        if self.resize != "pad" and self.image_size is None:
            raise ValueError(f"--resize {self.resize} is for frames of another size: add --image-size HEIGHTxWIDTH")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The closing account of a conversion: episodes_in = episodes_out + quarantined. `remarks` are sentences about what
    is odd and cost no episode."""

    store: str
    dataset: str
    version: str
    split: str
    contract: str
    encoder: str
    episodes_in: int
    episodes_out: int
    quarantined: int
    steps: int
    instructions: int
    shards: int
    shards_converted: int
    seconds: float
    remarks: tuple[str, ...]


def convert(source: str, out: str, config: ConvertConfig, reach_ray: ReachRay = own_ray) -> Summary:
    """Convert one split of the dataset in folder `source` into a store below `out`; both may be URLs.

    `reach_ray` is called if there is work for Ray. Raises ValueError or OSError, one sentence for a user to act on.
    """
    began = time.monotonic()
    if not str(out).strip():
        raise ValueError("OUT is empty: name a folder for the store")
    dataset = open_source(absolute(source))
    spec = _spec(config.dataset, dataset)
    encoder = _encoder(config, spec, dataset)
    task = _task(dataset, spec, absolute(str(out)), config, ships_vectors=encoder is None)
    settings = _settings(task, config, encoder.id if encoder else spec.embedding_encoder)
    filesystem, root = open_folder(task.root)
    embed = None if encoder is None else partial(_embed, encoder, config.workers, reach_ray)
    with reaching(task.root):
        done = filesystem.exists(f"{root}/{MANIFEST}")
        missing = []
    if done:
        manifest = finished(filesystem, root, settings, StoreManifest)
        if filesystem.exists(f"{root}/{PROGRESS}") and not filesystem.exists(f"{root}/{AUDIT}"):  # it was killed here
            _save_audit(task.root, counted_steps(task))
    else:
        if encoder is not None and embed is not None:
            encoder.require()
            require_agreement(dataset, task.shards[0], spec, encoder.id, embed)
        try:
            with claimed(filesystem, root, settings):
                files, reports = (names_in(filesystem, folder) for folder in (root, f"{root}/{PROGRESS}"))
                missing = [
                    number
                    for number in range(len(task.shards))
                    if task.shard_file(number) not in files or report_name(number) not in reports
                ]
                convert_one = partial(convert_shard, task)
                total = len(task.shards)
                convert_shards(
                    convert_one,
                    missing,
                    total=total,
                    workers=config.workers,
                    reach_ray=reach_ray,
                    claim=Claim(root=task.root, settings=settings),
                )
                manifest, counted = write_manifest(task, settings, embed)
            _save_audit(task.root, counted)
        except (OSError, ValueError):
            if not filesystem.exists(f"{root}/{MANIFEST}"):
                raise
            # another process was quicker with the same work
            manifest = finished(filesystem, root, settings, StoreManifest)
    remove_progress(filesystem, root)
    asked = str(out).rstrip("/")
    shown = f"{asked}{task.root.removeprefix(absolute(asked))}"  # under the name that the user gave
    return _summary(shown, manifest, len(missing), time.monotonic() - began)


# --- What to do ---


def _spec(asked: str | None, dataset: EpisodeSource) -> DatasetSpec:
    """The spec that is asked for by name or file, else the format's own, else that of the recorded name."""
    if asked is None and dataset.own_spec is not None:
        return dataset.own_spec
    name = asked or dataset.name
    return read_spec(Path(name)) if name.endswith((".yaml", ".yml")) else dataset_spec.load(name)


def _encoder(config: ConvertConfig, spec: DatasetSpec, dataset: EpisodeSource) -> Encoder | None:
    """The encoder to compute vectors with, or None for those that the episodes ship."""
    lacking = why_not_kept(dataset, spec)
    name = config.encoder or ("use-multilingual" if lacking else "dataset")
    use_model = absolute(config.use_model) if config.use_model else None
    encoder = None if name == "dataset" else load_encoder(name, use_model=use_model)
    if encoder is None and lacking:
        raise ValueError(f"{dataset.folder} ships no vectors that can be kept, {lacking}: leave out --encoder dataset")
    if config.encoder is None and lacking and spec.embedding in dataset.step_paths:
        logging.warning("%s: the instructions are encoded with %s, since %s", dataset.folder, name, lacking)
    if config.use_model and not isinstance(encoder, UseEncoder):
        raise ValueError(f"--use-model is for --encoder use, and the encoder here is {name}: leave out one of them")
    return encoder


def _task(
    dataset: EpisodeSource, spec: DatasetSpec, out: str, config: ConvertConfig, *, ships_vectors: bool
) -> ShardTask:
    cameras = own_roles(spec, camera_names(config.cameras))
    require_fit(dataset, spec, cameras)
    fields = [(path, dataset.feature(path)) for path in spec.source_actions]
    layout = StoreLayout(
        cameras=cameras,
        action_size=spec.space.size,
        proprio_size=len(spec.proprio_names),
        source=tuple(SourceField(path=path, dtype=f.dtype, shape=f.fixed_shape()) for path, f in fields),
    )
    whole = dataset.shards(config.split)
    shards = tuple(part for shard in whole for part in shard.parts(config.max_shard_mb << 20))
    limits = _limits(shards, config.limit)
    used = [i for i, limit in enumerate(limits) if limit != 0]
    if not used:
        raise ValueError(
            f"split {config.split!r} of {dataset.folder} is declared without episodes: ask another --split"
        )
    return ShardTask(
        dataset=dataset,
        spec=spec,
        shards=tuple(shards[i] for i in used),
        limits=tuple(limits[i] for i in used),
        root=f"{out.rstrip('/')}/{spec.name}/{dataset.version}/{dataset.split_slice(config.split).name}",
        layout=layout,
        image_sizes=FrameSizes.parse(config.image_size).of(spec, cameras),
        resize=config.resize,
        embedding=spec.embedding if ships_vectors else None,
        check_crc=config.check_crc,
        check_frames=config.check_frames,
    )


def _limits(shards: tuple[SourceShard, ...], limit: int | None) -> list[int | None]:
    """Records to read of each shard: None for all, else the first `limit` of the split by the declared counts."""
    if limit is None:
        return [None] * len(shards)
    limits = []
    left = limit
    for shard in shards:
        limits.append(min(shard.num_selected, left))
        left -= limits[-1]
    return limits


def _settings(task: ShardTask, config: ConvertConfig, encoder: str | None) -> JsonObject:
    """Everything that decides what the store's bytes will be."""
    sizes = FrameSizes.parse(config.image_size)
    optional = {role: path for role, path in task.spec.optional_cameras.items() if role in task.layout.cameras}
    return {
        "schema_version": SCHEMA_VERSION,
        "row_group_rows": ROW_GROUP_ROWS,
        "dataset": task.spec.name,
        "version": task.dataset.version,
        "split": task.dataset.split_slice(config.split).name,
        "spec": task.spec.hash(),
        "encoder": encoder,
        "shipped_vectors": task.embedding is not None,
        "image_size": list(sizes.of_all) if sizes.of_all else None,
        **({"image_sizes": {role: list(size) for role, size in sizes.by_role.items()}} if sizes.by_role else {}),
        "resize": task.resize if config.image_size else None,
        "cameras": list(task.layout.cameras),
        **({"optional_cameras": optional} if optional else {}),
        "limit": config.limit,
        "check_crc": config.check_crc,
        **({} if config.check_frames else {"check_frames": False}),
        "source": [_described(shard) for shard in task.shards],
    }


def _described(shard: SourceShard) -> list[str | int | None]:
    """Name and bytes of a source file, and of a part of one its records."""
    whole = shard.first == 0 and shard.stop is None
    return [shard.name, shard.num_bytes] + ([] if whole else [shard.first, shard.stop])


# --- Doing it ---


def _embed(encoder: Encoder, workers: int | None, reach_ray: ReachRay, texts: list[str]) -> np.ndarray:
    """float32 (N, 512); with Ray in a task of its own, so that the encoder's TensorFlow stays out of this process."""
    if workers == 0 or isinstance(encoder, ImportedEncoder):  # whose folder may lie on this machine alone
        return embed_texts(encoder, texts)
    import ray

    without_verdict(reach_ray)
    return ray.get(ray.remote(embed_texts).remote(encoder, texts))


def _save_audit(root: str, counted: StepCounts | None) -> None:
    """Beside the new store, so that no training needs to read all its steps for it."""
    try:
        store = EpisodeStore.open(root)
        report = audit(store, counted=counted)
        save(store, report)
    except (OSError, ValueError) as error:
        logging.warning("%s is finished, and its audit could not be saved: %s", root, error)
        return
    for sentence in blocking(report.verdicts):
        logging.warning("%s contradicts what its spec declares, so rtp train will refuse it: %s", root, sentence)


def _summary(root: str, manifest: StoreManifest, converted: int, seconds: float) -> Summary:
    return Summary(
        store=root,
        dataset=manifest.dataset,
        version=manifest.version,
        split=manifest.split,
        contract=manifest.contract_id,
        encoder=manifest.encoder,
        episodes_in=manifest.counts.episodes_in,
        episodes_out=manifest.counts.episodes_out,
        quarantined=manifest.counts.quarantined,
        steps=manifest.counts.steps,
        instructions=manifest.instructions.rows,
        shards=len(manifest.shards),
        shards_converted=converted,
        seconds=seconds,
        remarks=manifest.remarks,
    )
