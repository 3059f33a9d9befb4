"""Publishing checkpoints during the training: the loop waits for a copy to host memory, a thread does the rest."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cluster.context import WorkerContext
from cluster.manifest import Metadata
from cluster.storage import CheckpointFolder

_BEAT_S = 0.2


class BackgroundSaver:
    """Publishes one checkpoint at a time from a thread of its own. All methods are collective.

    A failure comes up at the next call, on every rank; the checkpoints before it are intact.
    """

    def __init__(self, folder: CheckpointFolder, context: WorkerContext) -> None:
        self._folder = folder
        self._trainer, self._context = context, context.fork()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        metadata: Metadata,
        keep_last: int,
        keep_best_by: str | None = None,
    ) -> None:
        """As `CheckpointFolder.save`, returning at once; `write` is an engine's `snapshot()`.

        Waits for the checkpoint before: host memory holds one copy of the state at a time.
        """
        self.wait()
        arguments = (step, write, self._context, metadata, keep_last, keep_best_by)
        self._pending = self._pool.submit(self._folder.save, *arguments)

    def wait(self) -> None:
        """Wait until the last checkpoint is published. Raises the error of a publication that failed.

        However slow the disk or store, the watchdog hears that this worker is alive: it cannot tell slow from hung. A
        store that does not answer and ranks that wait for this one have time limits of their own; a single worker on a
        disk that hangs has none and waits until somebody stops it.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            while not futures.wait([pending], timeout=_BEAT_S).done:
                self._trainer.beat()
            pending.result()

    def close(self) -> None:
        """Wait, then end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
