"""A job is resolved once; a worker that is given a prepared one resolves nothing and takes no other store."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.context import LocalContext
from cluster.launch import RayLaunch
from pipelines import train as command
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import InProcess
from pipelines.train_loop import train
from pipelines.training import preparation
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import open_stores, prepared
from rt_models.rt2 import RT2Config


def job_of(recipe: str, store: str, folder: Path) -> TrainJob:
    experiment = load_recipe(recipe)
    loop = replace(experiment.loop, steps=2, global_batch=2, micro_batch=2, log_every=1)
    if experiment.co_fine_tuning is not None:
        experiment = replace(experiment, co_fine_tuning=replace(experiment.co_fine_tuning, robot_share=1.0))
    return TrainJob(
        experiment=replace(experiment, loop=loop),
        stores=(store,),
        output=str(folder / recipe),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )


def test_a_worker_resolves_nothing_again(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of("rt2_tiny", store, tmp_path)
    ready = prepared(job)
    assert isinstance(ready.experiment.model, RT2Config) and ready.experiment.model.tokenizer.merges
    assert prepared(ready) == ready  # nothing is left to resolve
    calls: list[str] = []

    def counted(name: str) -> Any:
        original = getattr(preparation, name)

        def call(*arguments: Any) -> Any:
            calls.append(name)
            return original(*arguments)

        return call

    for name in ("resolved", "training_contract", "plans_fingerprint"):
        monkeypatch.setattr(preparation, name, counted(name))
    metrics = train(LocalContext("cpu"), ready)
    assert calls == []
    by_hand = train(LocalContext("cpu"), replace(job, output=str(tmp_path / "by_hand")))
    assert calls == ["resolved", "training_contract", "plans_fingerprint"]
    assert by_hand["loss"] == metrics["loss"]


@pytest.mark.parametrize("where", [InProcess(), RayLaunch()])
def test_rtp_train_prepares_the_job_that_the_workers_get(
    where: InProcess | RayLaunch, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[TrainJob] = []
    monkeypatch.setattr(RayLaunch, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(command, "launch", lambda function, config, *_, **__: sent.append(config["job"]) or {})
    monkeypatch.setattr(command, "train", lambda context, job: sent.append(job) or {})
    job = job_of("rt1_tiny", store, tmp_path)
    job = replace(job, experiment=replace(job.experiment, launch=where))
    command.run_training(job)
    (received,) = sent
    assert isinstance(received, PreparedJob) and received.run_id
    assert replace(received, run_id=None) == prepared(job)


def test_a_worker_refuses_a_store_that_was_changed_since(store: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(store, own)
    job = prepared(job_of("rt1_tiny", str(own), tmp_path))
    assert [opened.root for opened in open_stores(job)] == [str(own)]
    manifest = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps(manifest | {"remarks": ["appended"]}))
    with pytest.raises(ValueError, match=r"own is another store than the one that the training was prepared with"):
        open_stores(job)


def test_a_prepared_job_carries_what_was_asked(store: str, tmp_path: Path) -> None:
    asked = replace(job_of("rt1_tiny", store, tmp_path), resume=True, until=1, tags={"trial": "3"}, init="weights")
    ready = prepared(asked)
    assert isinstance(ready, PreparedJob) and (ready.resume, ready.until, ready.init) == (True, 1, "weights")
    assert ready.tags == {"trial": "3"} and ready.contract.id and ready.plans == ""
    assert [reference.path for reference in ready.references] == [store]
