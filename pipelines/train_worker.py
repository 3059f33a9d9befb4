"""What every Ray worker of a training runs, and how an error that no restart can mend ends it at once.

Ray Train starts its workers again after any exception. A mistake of the user's would then be made max_failures times.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping

from cluster.context import WorkerContext
from cluster.stop_file import StopFile
from pipelines.train_loop import train
from pipelines.training.job import TrainJob

_AGREE_S = 10.0


def train_worker(context: WorkerContext, config: Mapping[str, TrainJob]) -> dict[str, float | str]:
    """Train; the error that ended it, where it is not raised here, is left in the run's STOP file.

    An error that all ranks meet ends them quietly. One that this rank meets alone is raised, because the others wait
    for it in a collective: Ray ends them, and those it starts in their place find the error and leave.
    """
    job = config["job"]
    stop, verdicts = StopFile(job.output), context.fork()
    if stop.left() is not None:
        return {}
    try:
        return train(context, job)
    except (ValueError, FloatingPointError) as error:
        stop.leave(error)
        if not _all_are_here(verdicts):
            raise
        return {}


def _all_are_here(verdicts: WorkerContext) -> bool:
    """Whether every rank comes here within some seconds."""
    met = threading.Event()

    def meet() -> None:
        with contextlib.suppress(RuntimeError):  # a rank that died
            verdicts.barrier()
            met.set()

    threading.Thread(target=meet, daemon=True, name="verdict").start()
    return met.wait(_AGREE_S)
