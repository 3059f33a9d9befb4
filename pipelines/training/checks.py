"""What can be known to go wrong before any worker starts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from cluster.storage import Checkpoint, CheckpointFolder
from pipelines.training.data import require_readable
from pipelines.training.initial_weights import require_same_run, require_trainable, require_usable
from pipelines.training.job import PreparedJob
from pipelines.training.step_metrics import require_reported
from preprocessing.audit.store_audit import blocking, saved_or_measured
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.integrity import require_whole
from preprocessing.store.web_store import Store, open_store, robot_stores
from rt_models.spec import DatasetContract

UNITLESS = "unitless"


def check_job(job: PreparedJob, stores: Sequence[Store], accepted: Collection[str]) -> None:
    """Raise ValueError for whatever can be known to go wrong before a worker starts; `stores` are the job's."""
    for store in stores:
        require_whole(store)
    require_sound(robot_stores(stores), accepted)
    seen = {store.root for store in stores}
    for store in robot_stores(open_store(path, split="val") for path in job.validation):
        if store.root in seen:
            logging.warning("%s is trained on too: its validation_loss says what is known by heart", store.root)
        require_readable(job.contract, store)
        require_whole(store)
    for sentence in mixed_units(job.contract.datasets, job.contract.action.names):
        logging.warning(sentence)
    loop = job.experiment.loop
    require_reported(loop.best_by, "loop.best_by")
    if loop.patience and loop.best_by == "validation_loss" and not (job.validation and loop.evaluate_every):
        raise ValueError("loop.patience needs measurements: give --validation STORE and loop.evaluate_every")
    checkpoint = require_fresh_or_resumed(job)
    require_trainable(job.experiment, is_new=job.init is None and checkpoint is None)
    if job.init is not None and checkpoint is None:
        require_usable(job.init, job.experiment, job.contract)


def require_sound(stores: Sequence[EpisodeStore], accepted: Collection[str]) -> None:
    """Raise ValueError if the audit finds that a store's data contradict what its spec declares."""
    for store in stores:
        report = saved_or_measured(store)
        refused = blocking(report.verdicts, accepted=accepted)
        if refused:
            raise ValueError(
                f"{store.root} contradicts what is declared of it: {'; '.join(refused)}. Mend the dataset spec and "
                f"preprocess again, or train in spite of it with --accept {refused[0].partition(':')[0]}"
            )


def mixed_units(datasets: Sequence[DatasetContract], names: Sequence[str]) -> list[str]:
    """One sentence for each way in which datasets give the dimensions `names` different meanings: metres beside metres
    a second, rotations beside differences of axis-angle components, places beside displacements. What is unitless says
    nothing of itself."""
    dimensions_of: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for place, name in enumerate(names):
        having = [d for d in datasets if d.action_mask[place] and d.units[place] != UNITLESS]
        unit_of = {d.name: f"{d.units[place]} {d.kinds[place]}" if d.kinds else d.units[place] for d in having}
        if len(set(unit_of.values())) > 1:
            dimensions_of.setdefault(tuple(unit_of.items()), []).append(name)
    return [
        f"{', '.join(dimensions)} is not the same in all datasets: "
        + ", ".join(f"{unit} in {dataset}" for dataset, unit in units)
        + "; a model that is trained on them together cannot tell"
        for units, dimensions in dimensions_of.items()
    ]


def require_fresh_or_resumed(job: PreparedJob) -> Checkpoint | None:
    """The checkpoint to go on from. Raises ValueError where the folder holds a run that is not, or cannot be,
    continued."""
    folder = CheckpointFolder(f"{job.output}/checkpoints")
    checkpoint = folder.latest()
    if checkpoint is None and (damaged := folder.damaged()):
        raise ValueError(
            f"{job.output} holds a run of which no checkpoint is whole, the newest is {damaged[-1]}: bring its files "
            f"back, or give another --output"
        )
    if checkpoint is not None and not job.resume:
        raise ValueError(
            f"{job.output} already holds a run at step {checkpoint.step}: add --resume to continue it, "
            f"or give another --output"
        )
    if checkpoint is not None:
        require_same_run(checkpoint, job.contract, job.experiment, job.references)
    return checkpoint
