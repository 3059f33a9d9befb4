"""`--loader.where remote`: the same batches to the byte and in order, from any position, readers killed or not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace

import psutil
import pytest
import torch

from cluster.context import LocalContext
from cluster.placement import Actors
from cluster.session import RaySession, connect
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment
from pipelines.training.data import open_reader
from pipelines.training.fixed_shapes import training_loader
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import open_stores, prepared
from pipelines.training.remote_reader import RemoteSizedReader, _opened, reader_actors, reading_remotely
from preprocessing.loading.loader import Batch, LoaderConfig
from preprocessing.store import file_system

CONTEXT = LocalContext("cpu")


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    with connect(RaySession(num_cpus=2)):
        yield


@pytest.fixture(scope="module")
def job(store: str, tmp_path_factory: pytest.TempPathFactory) -> PreparedJob:
    recipe = load_recipe("rt1_tiny")
    loader = LoaderConfig(where="remote", remote_readers=2, decode_threads=1)
    loop = replace(recipe.loop, global_batch=12, micro_batch=6, lanes=6, fixed_shapes="on", segment_windows=2)
    output = str(tmp_path_factory.mktemp("run"))
    experiment = replace(recipe, loader=loader, loop=loop)
    return prepared(TrainJob(experiment=experiment, stores=(store,), output=output, tracking_uri=""))


def batches(job: PreparedJob, count: int, position: int = 0, *, remote: bool, kill: bool = False) -> list[Batch]:
    """With the position after each, under the name position."""
    with closing(open_reader(job.experiment, open_stores(job), job.contract)) as local:
        reader = reading_remotely(local, job, CONTEXT) if remote else local
        loader = training_loader(job.experiment, reader, CONTEXT, {"sample": position})
        found = []
        with closing(reader), closing(iter(loader)) as stream:  # type: ignore[type-var]
            for number, batch in enumerate(itertools.islice(stream, count)):
                found.append(batch | {"position": torch.tensor(loader.state()["sample"])})
                if kill and number in (2, 7):
                    readers()[0].kill()
        return found


def readers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # one that is ending
            found += [process] if any("_Worker" in word for word in process.cmdline()) else []
    return found


def same(one: list[Batch], other: list[Batch]) -> bool:
    """To the byte, but for what pads a batch's frames, which may be anything."""

    def as_bytes(batch: Batch) -> dict[str, tuple[object, ...]]:
        frames = batch["frames"][: int(batch["frame_index"].max()) + 1]
        sizes = {"number of frames": (len(batch["frames"]),)}
        real = (batch | {"frames": frames}).items()
        return sizes | {k: (v.dtype, tuple(v.shape), v.contiguous().numpy().tobytes()) for k, v in real}

    return list(map(as_bytes, one)) == list(map(as_bytes, other))


def test_batches_are_the_same_to_the_byte_though_readers_are_killed(job: PreparedJob) -> None:
    local = batches(job, 16, remote=False)
    assert same(batches(job, 16, remote=True, kill=True), local)
    ends = time.monotonic() + 30
    while readers() and time.monotonic() < ends:
        time.sleep(0.1)
    assert not readers(), "the actors end with the reader"
    assert not same(local[1:], local[:-1])  # so the comparison can tell


def test_a_run_that_is_resumed_goes_on_with_the_next_batch(job: PreparedJob) -> None:
    """Here without padding, as on CPUs."""
    loop = replace(job.experiment.loop, fixed_shapes="off")
    plain = replace(job, experiment=replace(job.experiment, loop=loop))
    assert same(batches(plain, 4, position=24, remote=True), batches(plain, 8, remote=False)[4:])


def test_what_is_computed_from_rows_alone_is_answered_here(job: PreparedJob) -> None:
    with closing(open_reader(job.experiment, open_stores(job), job.contract)) as local:
        reader = reading_remotely(local, job, CONTEXT)
        with closing(reader):
            assert isinstance(reader, RemoteSizedReader) and reader.counts == "images"
            assert reader.concurrent_reads == 2 and reader.store_rows == local.store_rows
            assert list(reader.block_starts) == list(local.block_starts) and reader.datasets == local.datasets


def test_a_reader_that_starts_anew_waits_for_a_store_that_is_away(
    job: PreparedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_system, "_first_contact_s", file_system.FIRST_CONTACT_S)
    _opened(job)
    assert file_system._first_contact_s == file_system.OUTAGE_S


def test_what_a_worker_starts_is_counted() -> None:
    assert reader_actors(LoaderConfig()) == Actors()
    assert reader_actors(LoaderConfig(where="remote", remote_readers=3)) == Actors(per_worker=3, cpus=2)


def test_what_cannot_be_read_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="frames of a pool stay where they are"):
        LoaderConfig(where="remote", frames="pool")
    recipe = load_recipe("rt1_tiny")
    alone: Experiment = replace(recipe, loader=LoaderConfig(where="remote"))
    with pytest.raises(ValueError, match="train with --launch RayLaunch"):
        alone.require_sizes()
