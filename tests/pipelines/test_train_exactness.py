"""One training however it is spread: the same losses and samples for every engine, ZeRO stage and world size."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.context import LocalContext, WorkerContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.launch import RayLaunch
from cluster.placement import Actors
from cluster.storage import CheckpointFolder
from cluster.zero import ZeroConfig
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment
from pipelines.tracking.mlflow_run import TrainingRun
from pipelines.train import run_training
from pipelines.train_loop import train
from pipelines.training.job import TrainJob
from pipelines.training.run_files import METRICS, final_samples, read_metrics
from preprocessing.loading.reader import LoaderConfig
from tests.support.ranks import run_ranks

STEPS, HALFWAY = 10, 4
ENGINES: dict[str, Any] = {
    "torch": TorchEngineConfig(clip_norm=0.5),
    **{f"zero-{s}": DeepSpeedEngineConfig(zero=ZeroConfig(stage=s), clip_norm=0.5) for s in (0, 1, 2, 3)},
}
HALF = {"half-for-two": "zero-1", "half-for-one": "zero-1"}  # stopped halfway, to be continued on so many ranks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exactness")
    run = TrainingRun(uri=tracking_uri_of(root), experiment="exactness", name="all", params={}, run_id=None)
    (root / "run_id").write_text(run.run_id)  # one for all: opening a run takes longer than its steps
    return root


def tracking_uri_of(root: Path) -> str:
    return f"sqlite:///{root}/mlflow.db"


def experiment(engine: str, *, steps: int = STEPS, world_size: int = 1) -> Experiment:
    """Two micro-batches an update, each of the same samples however many ranks share it, as BatchNorm sees them."""
    recipe = load_recipe("rt1_tiny")
    loop = replace(recipe.loop, steps=steps, micro_batch=8 // world_size, log_samples=True, checkpoint_every=1000)
    return replace(recipe, engine=ENGINES[engine], loop=loop, optimizer=replace(recipe.optimizer, lr=3e-3))


def job(root: Path, store: str, name: str, engine: str, **changes: Any) -> TrainJob:
    return TrainJob(
        experiment=experiment(engine, **changes),
        stores=(store,),
        output=str(root / name),
        tracking_uri=tracking_uri_of(root),
        run_id=(root / "run_id").read_text(),
    )


def losses(root: Path, name: str) -> list[float]:
    return [line["loss"] for line in read_metrics(root / name / METRICS)]


def train_all(context: WorkerContext, jobs: list[TrainJob]) -> None:
    for each in jobs:
        train(context, each)


@pytest.fixture(scope="module")
def reference(root: Path, store: str) -> list[float]:
    torch.set_num_threads(1)
    train(LocalContext("cpu"), job(root, store, "reference", "torch"))
    return losses(root, "reference")


@pytest.fixture(scope="module")
def on_two(root: Path, store: str, reference: list[float]) -> None:
    two = {"world_size": 2}
    jobs = [job(root, store, f"two-{engine}", engine, **two) for engine in ENGINES]
    jobs += [job(root, store, name, engine, steps=HALFWAY, **two) for name, engine in HALF.items()]
    jobs.append(job(root, store, "half-for-two", HALF["half-for-two"], **two))
    run_ranks(train_all, 2, root / "two", jobs)


@pytest.fixture(scope="module")
def on_one(root: Path, store: str, on_two: None) -> None:
    jobs = [job(root, store, f"one-{engine}", engine) for engine in ENGINES if engine != "torch"]
    jobs.append(job(root, store, "half-for-one", HALF["half-for-one"]))
    train_all(LocalContext("cpu"), jobs)


@pytest.mark.parametrize("engine", list(ENGINES)[1:])
@pytest.mark.usefixtures("on_one")
def test_one_rank_trains_as_plain_torch(engine: str, root: Path, reference: list[float]) -> None:
    assert losses(root, f"one-{engine}") == pytest.approx(reference, rel=1e-5)
    assert len(set(reference)) == STEPS and reference[-1] < 0.9 * reference[0]
    norms = [line["gradient_norm"] for line in read_metrics(root / "reference" / METRICS)]
    assert max(norms) > 0.5  # clipping was at work


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("on_two")
def test_two_ranks_train_as_one_on_the_same_samples(engine: str, root: Path, reference: list[float]) -> None:
    assert losses(root, f"two-{engine}") == pytest.approx(reference, rel=1e-4)
    assert final_samples(root / f"two-{engine}") == final_samples(root / "reference")
    ids = [sample[0] for samples in final_samples(root / "reference").values() for sample in samples]
    assert ids == list(range(16 * STEPS))


@pytest.mark.slow
def test_four_ranks_do_too(root: Path, store: str, reference: list[float]) -> None:
    run_ranks(train_all, 4, root / "four", [job(root, store, "four-torch", "torch", steps=HALFWAY, world_size=4)])
    assert losses(root, "four-torch") == pytest.approx(reference[:HALFWAY], rel=1e-4)
    assert final_samples(root / "four-torch") == dict(list(final_samples(root / "reference").items())[:HALFWAY])


@pytest.mark.usefixtures("on_two")
def test_continued_on_the_same_world_size_it_is_the_undisturbed_run(root: Path) -> None:
    """Bit for bit, though the same process has trained under ZeRO-3 in between."""
    assert losses(root, "half-for-two") == losses(root, "two-zero-1")
    assert final_samples(root / "half-for-two") == final_samples(root / "two-zero-1")


@pytest.mark.usefixtures("on_one")
def test_continued_on_another_world_size_it_sees_the_same_samples(root: Path, reference: list[float]) -> None:
    assert losses(root, "half-for-one") == pytest.approx(reference, rel=1e-4)
    assert final_samples(root / "half-for-one") == final_samples(root / "reference")


# --- with Ray ---


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with RayLaunch(num_workers=2).connected(Actors(per_worker=1, cpus=1)):
            yield


def with_ray(job: TrainJob, workers: int, **changes: Any) -> TrainJob:
    launch = RayLaunch(num_workers=workers, max_failures=3)
    return replace(job, experiment=replace(job.experiment, launch=launch, **changes))


def interrupt_after(output: Path, steps: int) -> None:
    """SIGTERM to this process, which launched the training, once so many steps are logged."""

    def wait() -> None:
        while len(read_metrics(output / METRICS)) < steps:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.usefixtures("ray")
def test_two_ray_workers_train_as_plain_torch_until_sigterm(root: Path, store: str, reference: list[float]) -> None:
    """With a checkpoint where they stopped, and the reason. An actor reads for each of them."""
    output = root / "ray-2"
    interrupt_after(output, STEPS)
    loader = LoaderConfig(where="remote", decode_threads=1)
    result = run_training(with_ray(job(root, store, "ray-2", "zero-1", world_size=2, steps=10**6), 2, loader=loader))
    latest = CheckpointFolder(output / "checkpoints").latest()
    assert latest is not None and latest.step == result.steps < 10**6
    assert f"SIGTERM: stopped at step {latest.step}" in str(result.stopped) and not (output / "STOP").exists()
    assert losses(root, "ray-2")[:STEPS] == pytest.approx(reference, rel=1e-4)
    samples = final_samples(output)
    assert {step: samples[step] for step in range(1, STEPS + 1)} == final_samples(root / "reference")


@pytest.mark.usefixtures("ray")
def test_an_error_that_no_restart_can_mend_is_not_tried_again(root: Path, store: str) -> None:
    wrong = with_ray(job(root, store, "wrong", "torch", world_size=2), 2, freeze=("tokenizr.",))
    with pytest.raises(ValueError, match=r"no parameter's name begins with 'tokenizr\.'"):
        run_training(wrong)
    assert not (root / "wrong/STOP").exists() and not read_metrics(root / "wrong" / METRICS)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_one_ray_worker_trains_as_plain_torch(root: Path, store: str, reference: list[float]) -> None:
    run_training(with_ray(job(root, store, "ray-1", "torch"), 1))
    assert losses(root, "ray-1") == pytest.approx(reference, rel=1e-5)
    assert final_samples(root / "ray-1") == final_samples(root / "reference")
