"""`--loader.where remote`: a rank's batches are read and decoded by actors on nodes without GPUs.

The order of samples, the position and the queue of batches stay with the rank's loader: an actor is asked for the batch
of given rows, which is the same wherever it is read. So an actor that dies changes nothing but the wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from cluster.context import WorkerContext
from cluster.placement import Actors
from cluster.remote_workers import RemoteWorkers
from pipelines.config.experiment import Experiment
from pipelines.training.data import open_reader
from pipelines.training.job import PreparedJob
from pipelines.training.preparation import open_stores
from preprocessing.loading.fixed_shapes import SizedReader, is_sized
from preprocessing.loading.reader import Batch, LoaderConfig, Reader
from preprocessing.store import file_system

if TYPE_CHECKING:
    from collections.abc import Sequence

Arrays = Mapping[str, np.ndarray]


def reader_actors(config: LoaderConfig) -> Actors:
    """What a worker starts for its loader."""
    if config.where == "local":
        return Actors()
    return Actors(per_worker=config.remote_readers, cpus=config.decode_threads)


def reading_remotely(reader: Reader, job: PreparedJob, context: WorkerContext) -> Reader:
    """A reader with the batches of `reader`, which actors read; it closes neither. Connected to Ray, of course."""
    config = job.experiment.loader
    workers: RemoteWorkers[..., Arrays] = RemoteWorkers(
        partial(_opened, job),
        count=config.remote_readers,
        cpus=config.decode_threads,
        offset=context.rank * config.remote_readers,
    )
    return _kind_for(reader)(reader, workers)


def _kind_for(reader: Reader) -> type[RemoteReader]:
    return RemoteSizedReader if is_sized(reader) else RemoteReader


def _opened(job: PreparedJob) -> Callable[..., Arrays]:
    """In an actor: the job's reader, whose batches travel as arrays, which Ray moves without copying."""
    file_system.wait_from_the_start()
    experiment: Experiment = replace(job.experiment, loader=replace(job.experiment.loader, where="local"))
    reader = open_reader(experiment, open_stores(job), job.contract, is_training=True)

    def read(*arguments: np.ndarray | None, **settings: int) -> Arrays:
        own = [array if array is None else array.copy() for array in arguments]  # Ray's cannot be written to
        return {name: tensor.numpy() for name, tensor in reader.read(*own, **settings).items()}  # type: ignore[arg-type]

    return read


class RemoteReader(Reader):
    """Answers from `local` what is computed from rows alone; `workers` read."""

    def __init__(self, local: Reader, workers: RemoteWorkers[..., Arrays]) -> None:
        self._local, self._workers = local, workers
        self.config, self.stores, self.store_rows = local.config, local.stores, local.store_rows
        self.concurrent_reads = local.config.remote_readers * local.config.decode_threads

    @property
    def datasets(self) -> Sequence[str]:
        return self._local.datasets

    @property
    def block_starts(self) -> np.ndarray:
        return self._local.block_starts

    def cost(self, rows: np.ndarray) -> np.ndarray | None:
        return self._local.cost(rows)

    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray | None = None) -> Batch:
        return self._received(self._workers.ask(sample_ids, rows, crop_keys))

    def close(self) -> None:
        """End the actors."""
        with suppress(Exception):  # a Ray that has gone already, which ends them too
            self._workers.close()

    def _received(self, arrays: Arrays) -> Batch:
        """Copied: Ray's shared memory cannot be written to, and is free for the next batches at once."""
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


class RemoteSizedReader(RemoteReader):
    """Of a reader whose batches can be padded (preprocessing/loading/fixed_shapes.py)."""

    @property
    def counts(self) -> str:
        return self._sized.counts

    @property
    def counted(self) -> int:
        return self._sized.counted

    @property
    def _sized(self) -> SizedReader:
        return cast(SizedReader, self._local)

    def size(self, rows: np.ndarray, crop_keys: np.ndarray, *, crops: bool) -> int:
        return self._sized.size(rows, crop_keys, crops=crops)

    def largest_size(self, num_rows: int, segment_rows: int) -> int:
        return self._sized.largest_size(num_rows, segment_rows)

    def read(
        self,
        sample_ids: np.ndarray,
        rows: np.ndarray,
        crop_keys: np.ndarray | None = None,
        *,
        capacity: int | None = None,
    ) -> Batch:
        settings = {} if capacity is None else {"capacity": capacity}
        return self._received(self._workers.ask(sample_ids, rows, crop_keys, **settings))
