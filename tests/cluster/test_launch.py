"""Ray Train for real: two workers, one killed, the training resumed from our own checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ranks import Net, optimizer_of, train

from cluster.context import WorkerContext
from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch, launch
from cluster.session import RaySession, connect
from cluster.storage import CheckpointFolder
from cluster.zero import ZeroConfig

UPDATES = 6


@pytest.fixture(scope="module", autouse=True)
def shared_ray() -> Iterator[None]:
    with connect(RaySession(num_cpus=4, object_store_mb=100)):
        yield


def train_with_checkpoints(context: WorkerContext, config: dict[str, Any]) -> dict[str, Any]:
    """Train, save after every update, resume from the latest; rank 1 is killed once where the config says so."""
    torch.manual_seed(0)
    zero = DeepSpeedEngineConfig(zero=ZeroConfig(stage=1))
    engine: Any = zero.build(context, micro_batch=4, accumulation=2)
    engine.build(Net, optimizer_of)
    folder = CheckpointFolder(config["folder"])
    latest = folder.latest()
    done, curve = 0, []
    if latest is not None:
        engine.load(folder.fetch(latest, Path(config["folder"])))
        done, curve = latest.step, latest.metadata["curve"]
    for update in range(done, UPDATES):
        curve = [*curve, *train(engine, range(update, update + 1))]
        folder.save(update + 1, engine.save, context, {"curve": curve}, keep_last=2)
        marker = Path(config["folder"], "killed")
        if context.rank == 1 and update + 1 == config["kill_after"] and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    context.report({"loss": curve[-1][0]})
    return {"curve": curve, "resumed_at": done}


def test_killed_worker_changes_nothing(tmp_path: Path) -> None:
    two = RayLaunch(num_workers=2, max_failures=1)
    undisturbed = launch(train_with_checkpoints, {"folder": str(tmp_path / "a"), "kill_after": 0}, two)
    disturbed = launch(train_with_checkpoints, {"folder": str(tmp_path / "b"), "kill_after": 3}, two)
    assert (undisturbed["resumed_at"], disturbed["resumed_at"]) == (0, 3)
    assert disturbed["curve"] == undisturbed["curve"]  # to the last digit
    assert undisturbed["loss"] == undisturbed["curve"][-1][0]
    assert [checkpoint.step for checkpoint in CheckpointFolder(tmp_path / "b").all()] == [5, 6]


def ask(context: WorkerContext, config: dict[str, Any]) -> dict[str, Any]:
    if config.get("wrong"):
        raise ValueError("the recipe has no data")
    return {
        "ranks": context.gather(context.rank),
        "any": [context.any(context.rank == 1), context.any(False)],
        "forked": context.fork().gather(context.local_rank),
        "threads": torch.get_num_threads(),
        "backend": dist.get_backend(),
        "device": str(context.device),
    }


def test_workers_agree() -> None:
    answer = launch(ask, {}, RayLaunch(num_workers=2))
    assert answer == {
        "ranks": [0, 1],
        "any": [True, False],
        "forked": [0, 1],
        "threads": 1,
        "backend": "gloo",
        "device": "cpu",
    }


def test_users_error_comes_home_as_itself() -> None:
    with pytest.raises(ValueError, match="the recipe has no data"):
        launch(ask, {"wrong": True}, RayLaunch(num_workers=1))


def test_too_many_workers_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="9 workers need 9 CPUs and Ray has 4"):
        launch(ask, {}, RayLaunch(num_workers=9))
    with pytest.raises(ValueError, match="num_workers"):
        RayLaunch(num_workers=(3, 2))


def test_running_ray_is_left_running() -> None:
    with connect(RaySession()):
        pass
    assert ray.is_initialized()
