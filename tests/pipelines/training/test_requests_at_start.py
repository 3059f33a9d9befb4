"""What a training asks of an object store before its first batch: little, and no more of a store with more steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from pipelines.catalogue import load_recipe
from pipelines.training.checks import check_job
from pipelines.training.data import open_reader
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import open_stores, prepared
from preprocessing.audit.store_audit import AUDIT
from preprocessing.store.web_store import open_store
from tests.support.away_files import AwayFileSystem, away_files

OF_A_STORE = 4  # by the driver: manifest, instructions, listing, audit
OF_A_RANK = 2  # manifest, instructions


@pytest.fixture
def remote(store: str) -> Iterator[str]:
    with away_files():
        fsspec.filesystem("away").put(store, "/data/train", recursive=True)
        yield "away://data/train"
        fsspec.filesystem("away").rm("/data", recursive=True)


def asked(act: Callable[[], object]) -> int:
    AwayFileSystem.asked = 0
    act()
    return AwayFileSystem.asked


def job_of(url: str, tmp_path: Path) -> TrainJob:
    return TrainJob(
        experiment=load_recipe("rt1_tiny"), stores=(url,), output=str(tmp_path / "run"), tracking_uri="sqlite:///x"
    )


def driver_started(job: TrainJob) -> PreparedJob:
    stores = [open_store(path, split="train") for path in job.stores]
    ready = prepared(job, stores)
    check_job(ready, stores, ())
    return ready


def test_a_start_reads_a_footer_per_shard_and_a_few_small_files(remote: str, tmp_path: Path) -> None:
    job = job_of(remote, tmp_path)
    shards = len(open_store(remote).shards)
    assert asked(lambda: driver_started(job)) == OF_A_STORE + shards
    ready = driver_started(job)
    assert asked(lambda: open_reader(ready.experiment, open_stores(ready), ready.contract).close()) == OF_A_RANK


def test_a_store_that_was_searched_for_is_not_searched_for_again(remote: str, tmp_path: Path) -> None:
    url = remote.rpartition("/")[0]
    ready = driver_started(job_of(url, tmp_path))
    assert ready.stores == (url,)
    assert asked(lambda: open_stores(ready)) == OF_A_RANK


def test_a_validation_on_training_data_is_said(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver_started(job_of(store, tmp_path))
    assert not caplog.messages
    driver_started(replace(job_of(store, tmp_path), validation=(store,)))
    assert caplog.messages == [f"{store} is trained on too: its validation_loss says what is known by heart"]


def test_a_store_without_an_audit_is_measured_once(remote: str, tmp_path: Path) -> None:
    job = job_of(remote, tmp_path)
    fsspec.filesystem("away").rm_file(f"/data/train/{AUDIT}")
    first, second = asked(lambda: driver_started(job)), asked(lambda: driver_started(job))
    assert first > 3 * second and second <= OF_A_STORE + len(open_store(remote).shards)
