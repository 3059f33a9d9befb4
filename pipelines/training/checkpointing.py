"""The checkpoints of a training: from which one it starts, and what goes into the next.

cluster/storage.py publishes them whole or not at all; cluster/background.py does so beside the training.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from cluster.agreement import on_rank_0
from cluster.background import BackgroundSaver
from cluster.context import WorkerContext
from cluster.engine import Engine
from cluster.state_files import write_files
from cluster.storage import Checkpoint, CheckpointFolder
from pipelines.config.serialization import to_plain
from pipelines.training.checkpoint_metadata import CheckpointMetadata
from pipelines.training.git_revision import git_revision
from pipelines.training.initial_weights import require_same_run
from pipelines.training.job import PreparedJob
from pipelines.training.loop_state import LoopState
from pipelines.training.random_state import random_state, restore_random_state


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a training starts, the same on every rank: at step 0, or after the last step of a checkpoint.

    position: place in the sample order; None: its beginning.
    """

    checkpoint: Checkpoint | None = None
    step: int = 0
    position: Mapping[str, int] | None = None
    loop_state: LoopState = field(default_factory=LoopState)


class Checkpointer:
    """This rank's part in the checkpoints of `job.output`. Rank 0 chooses; the other ranks are told. All collective."""

    def __init__(self, context: WorkerContext, job: PreparedJob) -> None:
        self._context, self._job = context, job
        self._agreements = context.fork()  # they do not start the watchdog: building a model takes its time
        self._folder = CheckpointFolder(f"{job.output}/checkpoints")
        self._saver = BackgroundSaver(self._folder, context)
        self._git_revision = git_revision()

    def choose(self) -> Start:
        """The newest complete checkpoint, as rank 0 sees the folder. Raises ValueError if it is of another training.

        Not only with --resume: a worker that Ray starts again after a failure goes on from here too. That a new run
        does not begin in another one's folder is checked before any worker starts (training/checks.py).
        """
        checkpoint = on_rank_0(self._agreements, self._newest)
        if checkpoint is None:
            return Start()
        metadata = CheckpointMetadata.of(checkpoint)
        return Start(
            checkpoint=checkpoint,
            step=checkpoint.step,
            position=metadata.position,
            loop_state=metadata.loop_state,
        )

    def _newest(self) -> Checkpoint | None:
        checkpoint, job = self._folder.latest(), self._job
        if checkpoint is not None:
            require_same_run(checkpoint, job.contract, job.experiment, job.references)
        return checkpoint

    def restore(self, start: Start, engine: Engine) -> None:
        """The engine's and the random generators' state. A rank that cannot find the chosen checkpoint stops all."""
        if start.checkpoint is None:
            return
        with tempfile.TemporaryDirectory(prefix="resume-") as scratch:
            folder = self._folder.fetch_on_every_rank(start.checkpoint, Path(scratch), self._agreements)
            engine.load(folder / "engine")
            restore_random_state(folder, self._context)
            self._agreements.barrier()  # the ranks of a node read one copy

    def save(
        self,
        step: int,
        engine: Engine,
        *,
        position: Mapping[str, int],
        loop_state: LoopState,
        measured: Mapping[str, float],
        mlflow_run_id: str | None,
    ) -> None:
        """Copy the state and return; another thread writes it while the training goes on.

        `measured`: the metrics of this very step. Raises what kept the checkpoint before from being written.
        """
        loop = self._job.experiment.loop
        best = measured.get(loop.best_by, math.nan)
        metadata = CheckpointMetadata(
            experiment=to_plain(self._job.experiment),
            contract=self._job.contract,
            plans=self._job.plans,
            position=position,
            loop_state=replace(loop_state),
            world_size=self._context.world_size,
            git_revision=self._git_revision,
            mlflow_run_id=mlflow_run_id,
            stores=self._job.references,
            best=best if math.isfinite(best) else None,
        )
        self._saver.save(
            step, self._snapshot(engine), metadata.to_json(), keep_last=loop.keep_last, keep_best_by=loop.best_by
        )

    def _snapshot(self, engine: Engine) -> Callable[[Path], None]:
        """Copies this rank's state; the returned function writes the copy, from any thread."""
        write_engine, random = engine.snapshot(), random_state(self._context)

        def write(folder: Path) -> None:
            (folder / "engine").mkdir()
            write_engine(folder / "engine")
            write_files(folder, random)

        return write

    def wait(self) -> None:
        """Until the last checkpoint is published. Raises what kept it from that."""
        self._saver.wait()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """After an error that a single rank may have met, the others do not come to finish a checkpoint with it."""
        if error is None or isinstance(error, FloatingPointError):  # the latter is met by every rank at the same step
            self._saver.close()
