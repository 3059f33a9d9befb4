"""What the command that starts a training and its workers must share, looked for by every worker before it trains.

A local path names another folder on every node, unless a shared disk lies there. Without this check a run whose
checkpoints lie on another node than its command would end as if it had trained nothing, and one whose metrics go to a
database that only the command can see would lose them.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from cluster.agreement import on_every_rank
from cluster.context import WorkerContext
from pipelines.families.models import family_of
from pipelines.tracking.mlflow_run import knows_run
from pipelines.training.co_fine_tuning import plans_fingerprint
from pipelines.training.imagenet_start import IMAGENET
from pipelines.training.job import PreparedJob
from pipelines.training.run_logger import known_run

_PATIENCE_S, _POLL_S = 5.0, 0.5  # a file system that caches folders may show a new file late


def require_shared(context: WorkerContext, job: PreparedJob) -> None:
    """Collective. Raises ValueError on every rank, naming the first one that lacks something, and the remedy."""
    folders = on_every_rank(context, _require_here, job, context.rank)
    if len(set(folders)) > 1:
        other = next(rank for rank, folder in enumerate(folders) if folder != folders[0])
        raise ValueError(
            f"rank {other} finds other files in model.path {', '.join(_model_folders(job))} than rank 0: every node "
            f"must see the same folder"
        )


def _require_here(job: PreparedJob, rank: int) -> str:
    """Raise ValueError for the first thing that this rank lacks; a fingerprint of the model's folder."""
    who = f"rank {rank} on {socket.gethostname()}"
    _require_output(job, who)
    for store in job.references:
        if not _in_time(lambda store=store: store.is_at(store.path)):
            raise ValueError(
                f"{who} does not find the store {store.path} that this training was prepared with: every node must see "
                f"the stores of --data, so put them on a shared disk or into an object store (s3://, gs://), and "
                f"change none during a training"
            )
    for path in job.validation:
        if "://" not in path and not Path(path).exists():
            raise ValueError(f"{who} does not find {path} of --validation: every node must see it")
    _require_plans(job, who)
    for folder in _model_folders(job):
        if not Path(folder).is_dir():
            raise ValueError(
                f"{who} does not find the folder {folder} of model.path: every node must have it at the same place, or "
                f"name a model of the hub as hub:OWNER/MODEL"
            )
    _require_weights(job, who)
    if rank == 0 and job.run_id is not None and not knows_run(job.tracking_uri, job.run_id):
        raise ValueError(
            f"{who} does not find this training's MLflow run in {job.tracking_uri}, so its metrics would be lost: "
            f"start a server (mlflow server) that every node reaches and set MLFLOW_TRACKING_URI=http://HOST:5000, or "
            f"put the file on a shared disk"
        )
    return _fingerprint(_model_folders(job))


def _require_output(job: PreparedJob, who: str) -> None:
    if job.run_id is None:  # nobody opened the run: rank 0 will
        return
    if not _in_time(lambda: known_run(job.output) == job.run_id):
        raise ValueError(
            f"{who} does not find what this command has written into {job.output} (run.json with MLflow run "
            f"{job.run_id}): every node must see the same --output, so give a folder on a shared disk or a URL such as "
            f"s3://BUCKET/RUN"
        )


def _require_plans(job: PreparedJob, who: str) -> None:
    mix = job.experiment.co_fine_tuning
    if mix is None or not mix.plans:
        return
    try:
        same = plans_fingerprint(mix) == job.plans
    except (OSError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"{who} does not find the plans of co_fine_tuning.plans {mix.plans}, or finds others there: every node "
            f"must see the same file"
        )


def _require_weights(job: PreparedJob, who: str) -> None:
    """Of --init, which a run that is resumed does not read again."""
    place = (job.init or "").removeprefix(IMAGENET)
    if place.startswith("/") and not job.resume and not Path(place).exists():
        raise ValueError(f"{who} does not find the weights {place} of --init: every node must see them")


def _in_time(holds: Callable[[], bool]) -> bool:
    ends = time.monotonic() + _PATIENCE_S
    while not holds():
        if time.monotonic() > ends:
            return False
        time.sleep(_POLL_S)
    return True


def _model_folders(job: PreparedJob) -> tuple[str, ...]:
    return family_of(job.experiment.model).folders(job.experiment.model)


def _fingerprint(folders: tuple[str, ...]) -> str:
    """Of names and sizes of the files: the weights may be many gigabytes."""
    files = [path for folder in folders for path in sorted(Path(folder).iterdir()) if path.is_file()]
    text = "".join(f"{path.name} {path.stat().st_size}\n" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
