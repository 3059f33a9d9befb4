"""Ray Train for real: two workers, one killed, the training resumed from our own checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from cluster.context import WorkerContext
from cluster.engine import DeepSpeedEngineConfig
from cluster.interfaces import interface_of
from cluster.launch import RayLaunch, _cause, launch
from cluster.session import RaySession, connect
from cluster.storage import CheckpointFolder
from cluster.zero import ZeroConfig
from tests.support.ranks import Net, optimizer_of, train

UPDATES = 6
ONCE = {2: "killed", 4: "hung"}  # what befalls rank 1 after which update, each once


@pytest.fixture(scope="module", autouse=True)
def shared_ray() -> Iterator[None]:
    with connect(RaySession(num_cpus=4, object_store_mb=100)):
        yield


def new_engine(context: WorkerContext) -> Any:
    torch.manual_seed(0)
    zero = DeepSpeedEngineConfig(zero=ZeroConfig(stage=1))
    engine: Any = zero.build(context, micro_batch=4, accumulation=4 // context.world_size)
    engine.build(Net, optimizer_of)
    return engine


def train_with_accidents(context: WorkerContext, config: dict[str, Any]) -> dict[str, Any]:
    """Train, save after every update, resume from the latest; after some updates rank 1 meets an accident, once."""
    place = Path(config["folder"])
    folder = CheckpointFolder(place / "checkpoints")
    latest = folder.latest()
    engine = new_engine(context)
    if latest is None:
        curve, undisturbed = [], train(engine, range(UPDATES))
        engine = new_engine(context)
    else:
        curve, undisturbed = latest.metadata["curve"], latest.metadata["undisturbed"]
        engine.load(folder.fetch(latest, place))
    for update in range(len(curve), UPDATES):
        curve = [*curve, *train(engine, range(update, update + 1))]
        folder.save(update + 1, engine.save, context, {"curve": curve, "undisturbed": undisturbed}, keep_last=2)
        accident = place / ONCE.get(update + 1, "")
        if context.rank == 1 and not accident.exists():
            accident.touch()
            if accident.name == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
    context.report({"loss": curve[-1][0]})
    return {"curve": curve, "undisturbed": undisturbed}


def test_dead_and_hung_workers_change_nothing(tmp_path: Path) -> None:
    run = RayLaunch(num_workers=2, max_failures=2, hang_timeout_s=4)
    result = launch(train_with_accidents, {"folder": str(tmp_path)}, run)
    assert all((tmp_path / accident).exists() for accident in ONCE.values())
    assert result["curve"] == result["undisturbed"] and len(result["curve"]) == UPDATES  # to the last digit
    assert result["loss"] == result["curve"][-1][0]
    assert [checkpoint.step for checkpoint in CheckpointFolder(tmp_path / "checkpoints").all()] == [5, 6]


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
        "interface": os.environ["GLOO_SOCKET_IFNAME"] == interface_of(ray.util.get_node_ip_address()),
    }


def test_as_many_workers_as_there_is_room_for() -> None:
    """Room for two of one to three; they agree with each other, over the interface of the node's own address."""
    answer = launch(ask, {}, RayLaunch(num_workers=(1, 3), cpus_per_worker=2))
    assert answer == {
        "ranks": [0, 1],
        "any": [True, False],
        "forked": [0, 1],
        "threads": 2,
        "backend": "gloo",
        "device": "cpu",
        "interface": True,
    }


def test_users_error_comes_home_as_itself() -> None:
    with pytest.raises(ValueError, match="the recipe has no data"):
        launch(ask, {"wrong": True}, RayLaunch(num_workers=1))


def die(context: WorkerContext, config: dict[str, Any]) -> None:
    if config["how"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("no memory left")


@pytest.mark.parametrize(
    ("how", "words"),
    [("killed", "died unexpectedly"), pytest.param("raised", "no memory left", marks=pytest.mark.slow)],
)
def test_a_worker_that_is_not_started_again_is_one_sentence(how: str, words: str) -> None:
    with pytest.raises(ChildProcessError) as caught:
        launch(die, {"how": how}, RayLaunch(num_workers=1))
    said = str(caught.value)
    of_worker = said.startswith("the worker of rank 0 failed") and words in said
    of_controller = said.startswith("the training's controller failed")  # asking a worker that has just been killed
    assert (of_worker or of_controller) and "--resume" in said
    assert len(said.splitlines()) == 1 and len(said) < 400


def test_what_a_worker_raised_is_the_reason_in_one_sentence() -> None:
    """As Ray Train tells it: the worker's own traceback, by rank."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    told = RuntimeError("Traceback (most recent call last):\n  File x\nRuntimeError: no memory left")
    said = str(_cause(WorkerGroupError("Training failed", {1: told})))
    assert said.startswith("the worker of rank 1 failed") and "RuntimeError: no memory left;" in said
    assert "--resume" in said and len(said.splitlines()) == 1
    mistake = ValueError("the recipe has no data")
    assert _cause(WorkerGroupError("Training failed", {0: mistake, 1: told})) is mistake


def test_too_many_workers_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="9 workers need 9 CPUs and Ray has 4"):
        launch(ask, {}, RayLaunch(num_workers=9))
    with pytest.raises(ValueError, match="num_workers"):
        RayLaunch(num_workers=(3, 2))


def test_running_ray_is_left_running() -> None:
    with connect(RaySession()):
        pass
    assert ray.is_initialized()
