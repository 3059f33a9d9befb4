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
    """Train. An error that ends the training is left in the run's STOP file.

    If all ranks meet the error, they end quietly. If this rank alone meets it, the error is raised, because the other
    ranks wait for this one in a collective: Ray ends them, and the workers that it starts instead find the error and
    end.
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
    """Whether every rank calls this within some seconds."""
    met = threading.Event()

    def meet() -> None:
        with contextlib.suppress(RuntimeError):  # a rank that died
            verdicts.barrier()
            met.set()

    threading.Thread(target=meet, daemon=True, name="verdict").start()
    return met.wait(_AGREE_S)
