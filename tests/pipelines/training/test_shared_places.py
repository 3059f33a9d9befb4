"""What the nodes of a training do not share is said before it starts, by name, whoever lacks it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import object_store
from cluster.context import LocalContext, WorkerContext
from cluster.launch import RayLaunch
from pipelines import train as train_command
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import InProcess
from pipelines.sweeps.trials import TrainingTrial
from pipelines.tracking.mlflow_run import TrainingRun, knows_run
from pipelines.train import run_training
from pipelines.train_worker import train_worker
from pipelines.training import shared_places
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import prepared
from pipelines.training.result import TrainingResult
from pipelines.training.shared_places import require_shared
from preprocessing.store import file_system
from tests.support.ranks import run_ranks
from tuning.tuner import TrialTask

Moved = Callable[[PreparedJob], PreparedJob]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_places, "_PATIENCE_S", 0.0)
    for module in (object_store, file_system):  # which a worker changes for good
        monkeypatch.setattr(module, "_first_contact_s", module.FIRST_CONTACT_S)


@pytest.fixture
def job(store: str, tmp_path: Path) -> TrainJob:
    recipe = load_recipe("rt1_tiny")
    loop = replace(recipe.loop, steps=2, global_batch=4, micro_batch=2)
    experiment = replace(recipe, loop=loop, launch=RayLaunch())
    uri = f"sqlite:///{tmp_path}/driver/mlflow.db"
    return TrainJob(experiment=experiment, stores=(store,), output=str(tmp_path / "run"), tracking_uri=uri)


def ends_on_another_node(monkeypatch: pytest.MonkeyPatch, job: TrainJob, moved: Moved) -> str:
    """What run_training says where its worker runs on a node that has other things at the places of the job."""

    def launched(worker: Any, config: Mapping[str, PreparedJob], *_: Any, **__: Any) -> dict[str, Any]:
        return worker(LocalContext("cpu"), {"job": moved(config["job"])})

    monkeypatch.setattr(train_command, "launch", launched)
    monkeypatch.setattr(RayLaunch, "connected", lambda *_: LocalConnection())
    with pytest.raises(ValueError) as refused:
        run_training(job)
    return str(refused.value)


class LocalConnection:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_an_output_that_is_another_folder_on_the_workers_node_ends_the_run(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, it ended with "trained to step 0", as if all were well, and its checkpoints lay on the other node."""
    other = tmp_path / "other"
    said = ends_on_another_node(monkeypatch, job, lambda its: replace(its, output=str(other)))
    assert f"rank 0 on {shared_places.socket.gethostname()} does not find what this command has written into" in said
    assert "give a folder on a shared disk or a URL" in said
    assert not other.exists()  # nothing is left on the other node
    assert not list((tmp_path / "run").glob("checkpoints/*")) and not (tmp_path / "run/STOP").exists()


def test_the_output_of_another_run_at_that_place_is_not_taken_for_it(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/run.json").write_text(json.dumps({"mlflow_run_id": "f" * 32, "uri": "sqlite:///x"}))
    said = ends_on_another_node(monkeypatch, job, lambda its: replace(its, output=str(tmp_path / "other")))
    assert "does not find what this command has written" in said


def test_a_database_that_rank_0_does_not_see_ends_the_run(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, every metric was refused for good by an empty database that was made on the worker's node."""
    elsewhere = tmp_path / "node/mlflow.db"
    said = ends_on_another_node(monkeypatch, job, lambda its: replace(its, tracking_uri=f"sqlite:///{elsewhere}"))
    assert "does not find this training's MLflow run in" in said and "MLFLOW_TRACKING_URI=http://" in said
    assert not elsewhere.parent.exists()
    another = TrainingRun(uri=f"sqlite:///{elsewhere}", experiment="x", name="x", params={}, run_id=None)
    assert knows_run(another.uri, another.run_id) and not knows_run(another.uri, "0" * 32)


def test_stores_plans_and_weights_are_looked_for_too(
    job: TrainJob, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = prepared(job)
    absent, changed = tmp_path / "absent", tmp_path / "changed"
    shutil.copytree(store, changed)
    (changed / "manifest.json").write_bytes((changed / "manifest.json").read_bytes() + b"\n")
    reference = ready.references[0]
    plans = tmp_path / "plans.json"
    plans.write_text('{"push": "first the button"}')
    mix = CoFineTuningConfig(robot_share=1.0, plans=str(plans))
    with_plans = replace(ready, experiment=replace(ready.experiment, co_fine_tuning=mix), plans="0" * 16)
    for odd, words in (
        (replace(ready, references=(replace(reference, path=str(absent)),)), f"does not find the store {absent}"),
        (replace(ready, references=(replace(reference, path=str(changed)),)), f"does not find the store {changed}"),
        (replace(ready, validation=(str(absent),)), f"does not find {absent} of --validation"),
        (replace(ready, init=str(absent)), f"does not find the weights {absent} of --init"),
        (replace(ready, init=f"imagenet:{absent}"), f"does not find the weights {absent} of --init"),
        (with_plans, "or finds others there"),
        (
            replace(with_plans, experiment=replace(ready.experiment, co_fine_tuning=replace(mix, plans=str(absent)))),
            f"does not find the plans of co_fine_tuning.plans {absent}",
        ),
    ):
        with pytest.raises(ValueError, match="rank 0 on ") as refused:
            require_shared(LocalContext("cpu"), odd)
        assert words in str(refused.value)
    require_shared(LocalContext("cpu"), ready)


def test_a_trial_on_a_node_that_does_not_see_the_sweep_says_so(job: TrainJob, tmp_path: Path) -> None:
    experiment = replace(job.experiment, launch=InProcess())
    sweep = replace(job, experiment=experiment, output=str(tmp_path / "sweep"))
    parent = TrainingRun(uri=job.tracking_uri, experiment="x", name="sweep", params={}, run_id=None).run_id
    tags = {"mlflow.parentRunId": parent}
    task = TrialTask(number=0, seed=0, parameters={}, output=f"{sweep.output}/trials/0000", until=None)
    ran: list[TrainJob] = []

    def run(trial: TrainJob, **_: object) -> TrainingResult:
        ran.append(trial)
        return TrainingResult(output=trial.output, contract="", metrics={})

    with pytest.raises(ValueError, match=r"does not find the sweep in .*/sweep: every node must see"):
        TrainingTrial(job=sweep, run=run, tags=tags)(task, print)  # type: ignore[arg-type]
    Path(sweep.output).mkdir()
    Path(sweep.output, "sweep.json").write_text("{}")
    elsewhere = replace(sweep, tracking_uri=f"sqlite:///{tmp_path}/node/mlflow.db")
    with pytest.raises(ValueError, match=r"does not find the sweep's MLflow run in sqlite:///.*/node/mlflow.db"):
        TrainingTrial(job=elsewhere, run=run, tags=tags)(task, print)  # type: ignore[arg-type]
    assert not ran and not (tmp_path / "node").exists()
    assert TrainingTrial(job=sweep, run=run, tags=tags)(task, print) == {"step": 0}  # type: ignore[arg-type]
    assert file_system._first_contact_s == object_store._first_contact_s == file_system.OUTAGE_S


def asked(context: WorkerContext, jobs: list[PreparedJob]) -> str:
    shared_places._PATIENCE_S = 0.0
    try:
        require_shared(context, jobs[context.rank])
        return ""
    except ValueError as error:
        return str(error)


def test_a_rank_alone_that_lacks_something_stops_all_of_them(job: TrainJob, tmp_path: Path) -> None:
    ready = replace(prepared(job), run_id="a" * 32)
    jobs = [replace(ready, output=str(tmp_path / f"node-{rank}")) for rank in range(2)]
    Path(jobs[0].output).mkdir()
    Path(jobs[0].output, "run.json").write_text(json.dumps({"mlflow_run_id": ready.run_id, "uri": "http://x"}))
    jobs = [replace(each, tracking_uri="http://tracking:5000") for each in jobs]
    first, second = run_ranks(asked, 2, tmp_path / "ranks", jobs)
    assert first == second and first.startswith("rank 1 on ") and "--output" in first


def test_a_worker_returns_the_error_and_leaves_no_file_behind(job: TrainJob, tmp_path: Path) -> None:
    odd = replace(prepared(job), run_id="a" * 32)
    returned = train_worker(LocalContext("cpu"), {"job": odd})
    assert returned["error"] == "ValueError" and not Path(odd.output).exists()
