"""What every Ray worker of a training runs, and how an error that no restart can mend ends it at once.

Ray Train starts its workers again after any exception. A mistake of the user's would then be made max_failures times.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping

from cluster import object_store
from cluster.context import WorkerContext
from cluster.stop_file import StopFile, error_as_plain
from pipelines.train_loop import train
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.shared_places import require_shared
from preprocessing.store import file_system

_AGREE_S = 10.0


def train_worker(context: WorkerContext, config: Mapping[str, TrainJob]) -> dict[str, float | str]:
    """Train. An error that ends the training is left in the run's STOP file.

    If all ranks meet the error, they end quietly and return it. If this rank alone meets it, the error is raised,
    because the other ranks wait for this one in a collective: Ray ends them, and the workers that it starts instead
    find the error and end.
    """
    object_store.wait_from_the_start()
    file_system.wait_from_the_start()
    job, verdicts = config["job"], context.fork()
    if isinstance(job, PreparedJob):
        try:
            require_shared(verdicts, job)
        except ValueError as error:  # not left behind: the output folder may be another one here
            return dict(error_as_plain(error))
    stop = StopFile(job.output)
    if (left := stop.left()) is not None:
        return dict(error_as_plain(left))
    try:
        return train(context, job)
    except (ValueError, FloatingPointError) as error:
        stop.leave(error)
        if not _all_are_here(verdicts):
            raise
        return dict(error_as_plain(error))


def _all_are_here(verdicts: WorkerContext) -> bool:
    """Whether every rank calls this within some seconds."""
    met = threading.Event()

    def meet() -> None:
        with contextlib.suppress(RuntimeError):  # a rank that died
            verdicts.barrier()
            met.set()

    threading.Thread(target=meet, daemon=True, name="verdict").start()
    return met.wait(_AGREE_S)
