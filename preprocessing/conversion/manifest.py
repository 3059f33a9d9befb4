"""The end of a conversion: reports of all shards -> instruction table, quarantine, and the publishing manifest.

Everything is taken in shard order, so the bytes do not depend on which shard was finished when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.conversion.shard_conversion import (
    ShardTask,
    frames_of,
    instructions_name,
    size_flag,
    size_text,
)
from preprocessing.conversion.shard_report import ShardReport, read_report
from preprocessing.conversion.simulated_source import simulated_source_of
from preprocessing.dataset_spec import GROUPS, DatasetSpec
from preprocessing.source_rights import rights_of
from preprocessing.store.episode_store import INSTRUCTION_SCHEMA, INSTRUCTIONS, QUARANTINE, atomic_write, fixed_lists
from preprocessing.store.file_system import FileSystem, file_system_of
from preprocessing.store.images import JPEG_QUALITY
from preprocessing.store.json_files import JsonObject
from preprocessing.store.json_records import to_text
from preprocessing.store.manifest_file import MANIFEST, PROGRESS
from preprocessing.store.parallel_reads import in_parallel
from preprocessing.store.statistics import Moments, tiny_ranges
from preprocessing.store.step_counts import StepCounts
from preprocessing.store.store_manifest import (
    EpisodeCounts,
    InstructionsFile,
    Proprioception,
    SourceForm,
    StoreManifest,
    StoreStatistics,
)
from rt_models.spec import (
    EMBEDDING_WIDTH,
    MAIN_CAMERA,
    ActionStatistics,
    Contract,
    DatasetContract,
    ImageRecipe,
    SimulatedSource,
    unscaled,
)

_INSTEAD = {  # of a field that cannot be read
    "is_first": "the first step counts as first",
    "is_last": "the last step counts as last",
    "is_terminal": "no step counts as terminal",
    "reward": "it is left empty",
}
_GRIPPER = "gripper_closedness_action"
_OVERSHOOT, _HALF_OPEN = 1.1, 0.5
Embed = Callable[[list[str]], np.ndarray]


def write_manifest(
    task: ShardTask, settings: JsonObject, embed: Embed | None
) -> tuple[StoreManifest, StepCounts | None]:
    """Write what follows the shards; the manifest, and the counts of steps unless a shard's report lacks them.

    `embed` gives float32 (N, 512), None keeps the shipped vectors. Raises ValueError if frames differ in size between
    shards, or if no episode is left.
    """
    filesystem, root = file_system_of(task.root)
    temporary = f"{root}/{PROGRESS}"
    reports, moments, state = _reports(filesystem, temporary, len(task.shards), task.spec.space.size)
    counts = _counts(reports)
    table = _instructions(filesystem, temporary, len(task.shards), embed, settings["encoder"])
    with atomic_write(filesystem, f"{root}/{INSTRUCTIONS}", temporary=temporary) as instructions:
        pq.write_table(table, pa.PythonFile(instructions, mode="w"), compression="zstd")
    _write_quarantine(filesystem, root, reports)
    statistics, spec = moments.statistics(), task.spec
    contract = store_contract(
        spec,
        version=task.dataset.version,
        encoder=settings["encoder"],
        image=_recipe(task, MAIN_CAMERA, [report.frame_size for report in reports if report.frame_size]),
        control_hz=_control_hz(reports),
        statistics=statistics,
        simulated=simulated_source_of(task.dataset.folder),
    )
    manifest = StoreManifest(
        schema_version=settings["schema_version"],
        dataset=spec.name,
        version=task.dataset.version,
        split=settings["split"],
        counts=counts,
        control_hz=contract.datasets[0].control_hz,
        encoder=settings["encoder"],
        contract_id=contract.id,
        contract=contract,
        statistics=StoreStatistics(
            **asdict(statistics),
            names=contract.action.names,
            units=spec.units,
            hardly_vary=tiny_ranges(statistics, contract.action.names, spec.action_mask),
        ),
        gripper=spec.gripper,
        cameras={role: spec.all_cameras[role] for role in task.layout.cameras},
        cameras_left_out=_left_out(task),
        camera_recipes=_further_recipes(task, reports),
        flag_names=tuple(flag.name for flag in spec.flags),
        proprio=Proprioception(names=spec.proprio_names, units=spec.proprio_units, statistics=state),
        source_fields={f.path: SourceForm(dtype=f.dtype, shape=f.shape) for f in task.layout.source},
        notes=spec.notes,
        row_group_rows=settings["row_group_rows"],
        instructions=InstructionsFile(file=INSTRUCTIONS, rows=table.num_rows, sha256=instructions.sha256),
        shards=tuple(report.entry() for report in reports),
        settings=settings,
        remarks=tuple(_remarks(task, reports, statistics)),
        rights=rights_of(task.dataset.folder),
    )
    with atomic_write(filesystem, f"{root}/{MANIFEST}", temporary=temporary) as file:
        file.write(manifest.to_bytes())
    return manifest, _step_counts(reports, len(spec.flags))


def _write_quarantine(filesystem: FileSystem, root: str, reports: list[ShardReport]) -> None:
    with atomic_write(filesystem, f"{root}/{QUARANTINE}", temporary=f"{root}/{PROGRESS}") as file:
        for report in reports:
            file.write("".join(to_text(record) + "\n" for record in report.quarantine).encode())


def _reports(
    filesystem: FileSystem, folder: str, count: int, action_size: int
) -> tuple[list[ShardReport], Moments, ActionStatistics | None]:
    """Every shard's report without its statistics, and the statistics over all shards of actions and of states; of
    states None where there are none, or where a shard was converted before they were taken.

    Histograms are merged as they are read, so that those of all shards are never in memory together.
    """
    reports: list[ShardReport] = []
    none = moments = Moments.empty(action_size)
    state: Moments | None = Moments.empty(0)
    for report in in_parallel(lambda index: read_report(ShardReport, filesystem, folder, index), count):
        moments = moments.merged(report.moments)
        state = None if state is None or report.state_moments is None else state.merged(report.state_moments)
        reports.append(replace(report, moments=none, state_moments=None))
    return reports, moments, None if state is None else state.statistics()


def counted_steps(task: ShardTask) -> StepCounts | None:
    """From the reports of a conversion whose manifest is written already; None if they are not all there."""
    filesystem, root = file_system_of(task.root)
    try:
        reports, *_ = _reports(filesystem, f"{root}/{PROGRESS}", len(task.shards), task.spec.space.size)
    except FileNotFoundError:
        return None
    return _step_counts(reports, len(task.spec.flags))


def _step_counts(reports: list[ShardReport], num_flags: int) -> StepCounts | None:
    counts = [report.step_counts for report in reports]
    known = [each for each in counts if each is not None]
    return StepCounts.sum(known, num_flags) if len(known) == len(counts) else None


def _counts(reports: list[ShardReport]) -> EpisodeCounts:
    """The account. Raises RuntimeError if it does not add up, ValueError if nothing could be read."""
    records = sum(report.source_records for report in reports)
    episodes = sum(len(report.episode_lengths) for report in reports)
    quarantined = sum(len(report.quarantine) for report in reports)
    steps = sum(sum(report.episode_lengths) for report in reports)
    if records != episodes + quarantined or steps != sum(report.rows for report in reports):
        raise RuntimeError(f"the account does not add up: {records} records in, {episodes} out, {quarantined} left out")
    if episodes == 0:
        first = next((record.reason for report in reports for record in report.quarantine), "the split is empty")
        raise ValueError(f"not one of {records} episodes can be read ({first}): is this the right dataset spec?")
    return EpisodeCounts(episodes_in=records, episodes_out=episodes, quarantined=quarantined, steps=steps)


def _remarks(task: ShardTask, reports: list[ShardReport], statistics: ActionStatistics) -> list[str]:
    """Sentences about what is odd and costs no episode; `statistics` are of the steps that are not terminal."""
    unread = sum((Counter(report.unread) for report in reports), Counter())
    odd = [steps for report in reports for steps in report.states_not_finite]
    total = sum(len(report.episode_lengths) for report in reports)
    remarks = [f"{path} is not one number per step: {_INSTEAD[path]}" for path in task.paths_of_other_form()]
    remarks += [
        f"{path} of {count} of {total} episodes is not as features.json declares it: {_INSTEAD[path]} there"
        for path, count in sorted(unread.items())
    ]
    remarks += [
        f"the frames of camera {role} were decoded from a video ({codec}) and stored as JPEG of quality "
        f"{JPEG_QUALITY}: they carry the loss of both"
        for role, codec in task.videos().items()
    ]
    if odd:
        remarks.append(
            f"the state is not finite at {sum(odd)} steps of {len(odd)} of {total} episodes: it is kept as it is; "
            f"models that read the state, and loader.relabel, refuse this store"
        )
    if statistics.count == 0:
        remarks.append(
            "every step is terminal, and rtp train leaves such steps out: where is_terminal means something else, name "
            "it under ignored_marks of the dataset spec and preprocess again"
        )
    return remarks + _odd_closedness(task.spec, statistics)


def _odd_closedness(spec: DatasetSpec, statistics: ActionStatistics) -> list[str]:
    """A sentence if the closedness that RT-1's gripper is to hold is on another scale than from -1 to +1: a robot that
    is told 0 to open stays half closed."""
    place = GROUPS[_GRIPPER].start
    if not spec.space.is_rt1 or spec.gripper != "absolute" or spec.units[place] != "closedness" or not statistics.count:
        return []
    low, high = statistics.minimum[place], statistics.maximum[place]
    if max(-low, high) <= _OVERSHOOT and (low < 0 or high - low < _HALF_OPEN):
        return []
    return [
        f"{_GRIPPER} goes from {low:g} to {high:g}, and -1 opens, +1 closes: correct scale and offset in the dataset "
        f"spec (of 0 and 1 to close: scale 2, offset -1), unless the gripper was never told to open"
    ]


def _instructions(filesystem: FileSystem, folder: str, count: int, embed: Embed | None, encoder_id: str) -> pa.Table:
    """One row per distinct instruction, by id, with vectors shipped or computed now."""

    def read(index: int) -> pa.Table:
        return pq.read_table(pa.BufferReader(filesystem.cat_file(f"{folder}/{instructions_name(index)}")))

    table = pa.concat_tables(list(in_parallel(read, count))).sort_by("id")
    ids = table["id"].to_numpy()
    table = table.take(np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1)))
    if embed is not None:
        vectors = embed(table["text"].to_pylist())
    else:
        vectors = np.frombuffer(b"".join(table["vector"].to_pylist()), np.float32).reshape(-1, EMBEDDING_WIDTH)
    encoders = pa.array([encoder_id] * table.num_rows, pa.string())
    return pa.table([table["id"], table["text"], encoders, fixed_lists(vectors)], schema=INSTRUCTION_SCHEMA)


def _recipe(task: ShardTask, role: str, sizes_of_shards: Sequence[tuple[int, ...]]) -> ImageRecipe:
    """What every stored frame of a camera is."""
    sizes = sorted(set(sizes_of_shards))
    if len(sizes) > 1:
        raise ValueError(
            f"{frames_of(role)} of {task.root} differ in size between shards, {size_text(sizes)}: give "
            f"{size_flag(role)}"
        )
    height, width = sizes[0]
    return ImageRecipe(
        camera=role, height=height, width=width, resize=task.resize if task.image_sizes[role] else "none"
    )


def _further_recipes(task: ShardTask, reports: list[ShardReport]) -> dict[str, ImageRecipe]:
    """By role what the frames of the cameras beside the main one are, of those whose every shard says so."""
    with_episodes = [report for report in reports if report.episode_lengths]
    known = [
        role
        for role in task.layout.cameras
        if role != MAIN_CAMERA and all(role in report.further_frame_sizes for report in with_episodes)
    ]
    return {role: _recipe(task, role, [each.further_frame_sizes[role] for each in with_episodes]) for role in known}


def _left_out(task: ShardTask) -> tuple[str, ...]:
    """Cameras of the source that are not stored; an optional one counts where it was recorded."""
    spec = task.spec
    there = [role for role, path in spec.all_cameras.items() if role in spec.cameras or path in task.dataset.step_paths]
    return tuple(role for role in there if role not in task.layout.cameras)


def _control_hz(reports: list[ShardReport]) -> float:
    rates_hz = sorted({rate for report in reports for rate in report.rates_hz})
    if len(rates_hz) > 1:
        raise ValueError(
            f"episodes were recorded at different rates, {rates_hz} Hz: a store holds one, split the source"
        )
    return rates_hz[0]


def store_contract(
    spec: DatasetSpec,
    *,
    version: str,
    encoder: str,
    image: ImageRecipe,
    control_hz: float,
    statistics: ActionStatistics,
    simulated: SimulatedSource | None = None,
) -> Contract:
    """The contract of a store of this dataset, whose actions are physical."""
    space_spec = spec.space.spec()
    dataset = DatasetContract(
        name=spec.name,
        version=version,
        control_hz=control_hz,
        action_mask=spec.action_mask,
        units=spec.units,
        statistics=statistics,
        transform=unscaled(space_spec.size),
        meanings=spec.meanings(statistics.mean),
        simulated=simulated,
    )
    action = space_spec.with_units(dict(zip(space_spec.names, spec.units, strict=True)))
    return Contract(action=action, encoder=encoder, image=image, datasets=(dataset,))
