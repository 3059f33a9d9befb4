"""`rtp doctor`: what would let a run fail is said before it starts, with the remedy and exit code 1."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.node_info import Gpu, Machine, examine, examine_nodes
from cluster.session import RaySession, connect
from cluster.shards import each_weight
from cluster.zero import STAGES
from pipelines.capacity.diagnosis import cluster_checks, run_checks
from pipelines.capacity.estimate import ResourceEstimate, estimate_resources
from pipelines.catalogue import load_recipe, recipe_names
from pipelines.cli import main
from pipelines.config.arguments import UsageError
from pipelines.config.experiment import Experiment
from pipelines.doctor import MachineArguments, diagnose
from pipelines.train import run_training
from pipelines.training.job import TrainJob
from preprocessing.store.web_store import open_store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, the JSON line, what was printed)."""
    code = main(["doctor", *arguments, "--json"])
    printed = capsys.readouterr().out
    return code, json.loads(printed.splitlines()[-1]), printed


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in found["checks"]}


def test_this_machine_without_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found, printed = asked(capsys)
    assert code == 0 and found["forecast"] is None
    assert {"packages", "devices", "shared memory", "storage", "MLflow"} <= verdicts(found).keys()
    assert found["machine"]["cpu_cores"] >= 1 and "torch 2." in printed
    assert list(tmp_path.iterdir()) == []  # it changes nothing


@pytest.mark.parametrize("name", [name for name in recipe_names() if "paligemma" not in name])
def test_every_recipe_is_estimated(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found, printed = asked(capsys, name)
    estimate, experiment = found["forecast"], load_recipe(name)
    assert code == int("fail" in verdicts(found).values())
    assert estimate["parameters"] > 10_000 and estimate["activations"] > 10_000
    assert estimate["samples"] == experiment.loop.steps * experiment.loop.global_batch
    assert all(f"ZeRO-{stage}: training state" in printed for stage in STAGES)
    assert list(tmp_path.iterdir()) == []


def test_what_is_estimated_is_what_the_run_then_takes(
    store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found, _ = asked(capsys, "rt1_tiny", "--data", store, "--loop.steps", "2")
    estimate = found["forecast"]
    experiment = load_recipe("rt1_tiny")
    experiment = replace(experiment, loop=replace(experiment.loop, steps=2))
    job = TrainJob(
        experiment=experiment,
        stores=(store,),
        output=str(tmp_path / "run"),
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    )
    run_training(job)
    folder = tmp_path / "run/checkpoints/step-00000002/engine"
    weights = dict(each_weight(folder))
    model = experiment.model.build()
    assert code == 0 and estimate["epochs"] == pytest.approx(32 / estimate["samples_per_epoch"])
    assert estimate["parameters"] == sum(weights[name].numel() for name, _ in model.named_parameters())
    assert estimate["checkpoint"] == pytest.approx(sum(file.stat().st_size for file in folder.iterdir()), rel=0.2)


def test_a_few_measured_steps_say_how_long_the_run_takes_and_leave_nothing(
    store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, found, printed = asked(capsys, "rt1_tiny", "--data", store, "--measure", "--loop.steps", "1000")
    measured = found["measured"]
    assert code == 0 and measured["steps"] == 6
    assert measured["run_s"] == pytest.approx(1000 * measured["step_s"])
    assert measured["peak_bytes"] > 10**8 and "1000 steps take about" in " ".join(printed.split())
    offered = printed.partition("next: ")[2].splitlines()[0]
    assert offered.startswith(f"rtp train rt1_tiny --data {store}") and "--measure" not in offered
    assert list(tmp_path.iterdir()) == []


def test_measuring_needs_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "rt1_tiny", "--measure"]) == 2
    assert "give --data STORE" in capsys.readouterr().err


def test_the_memory_of_a_worker_without_a_gpu_counts_its_process_and_its_loader(store: str) -> None:
    opened = [open_store(store)]
    experiment = load_recipe("rt1_metaworld")
    estimate = estimate_resources(experiment, opened)
    frames = opened[0].num_steps * 96 * 96 * 3  # type: ignore[union-attr]
    assert frames < estimate.loader < 2 * frames
    assert estimate_resources(experiment, []).loader == 1536 * 2**20
    assert estimate.host_bytes(1) > estimate.process + estimate.loader + estimate.worker_bytes(1) > 10**9
    small = replace(HERE, gpus=(), memory_free=10**9)
    assert told((experiment, estimate), small)["memory"].verdict == "fail"
    assert told((experiment, estimate), replace(small, memory_free=10**10))["memory"].verdict == "ok"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--loop.global_batch", "30"], "loop.global_batch 30 = loop.micro_batch 16 x accumulation x 2 workers"),
        (["--launch.num_workers", "1", "5", "--loop.micro_batch", "1", "--loop.global_batch", "60"], "lanes 48 = 5"),
        (["--launch.use_gpu"], "2 workers want a GPU each, 0 are there"),
        (["--launch.address", "127.0.0.1:1"], "no Ray cluster answers at '127.0.0.1:1'"),
        (["--output", "file/run"], "cannot be written"),
    ],
)
def test_what_would_fail_is_said(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (tmp_path / "file").write_text("")
    code, found, printed = asked(capsys, "rt1_metaworld", *flags)
    assert code == 1 and "fail" in verdicts(found).values() and words in " ".join(printed.split())


def test_a_silent_mlflow_server_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
        code, _, printed = asked(capsys)
    said = " ".join(printed.split())
    assert code == 1 and "does not answer" in said and "set MLFLOW_TRACKING_URI" in said


@pytest.mark.parametrize("arguments", [["--help"], ["rt1_tiny", "--help"]])
def test_help_lists_the_flags(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *arguments])
    assert stop.value.code in (0, None) and "--address" in capsys.readouterr().out


def test_the_users_mistakes_have_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "rt1_tiyn"]) == 2
    assert "rt1_tiny" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--adress"):
        from pipelines.doctor import main as doctor

        doctor(["--adress", "x"])


# --- Verdicts on machines that are not this one ---

HERE = Machine(
    host="here",
    versions={"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "deepspeed": "0.19.8"},
    cpu_cores=8,
    memory=10**11,
    memory_free=10**11,
    shared_memory=10**10,
    gpus=(Gpu(name="H100", memory=80 * 10**9),) * 8,
)


@pytest.fixture(scope="module")
def fractal() -> tuple[Experiment, ResourceEstimate]:
    """Eight workers with a GPU each under ZeRO-1."""
    experiment = load_recipe("rt1_fractal")
    return experiment, estimate_resources(experiment, [])


def told(run: tuple[Experiment, ResourceEstimate], machine: Machine, free_disk: int = 10**12) -> dict[str, Any]:
    return {check.name: check for check in run_checks(*run, [machine], free_disk)}


def with_memory(size: int) -> Machine:
    return replace(HERE, gpus=tuple(replace(gpu, memory=size) for gpu in HERE.gpus))


def test_memory_that_does_not_suffice_names_what_does(fractal: tuple[Experiment, ResourceEstimate]) -> None:
    assert told(fractal, HERE)["memory"].verdict == "ok"
    wanted = [fractal[1].gpu_bytes(stage) for stage in STAGES]
    check = told(fractal, with_memory((wanted[1] + wanted[2]) // 2))["memory"]
    assert check.verdict == "fail" and check.remedy == "--engine.zero.stage 2 fits"
    assert "lower loop.micro_batch" in told(fractal, with_memory(10**9))["memory"].remedy
    assert told(fractal, replace(HERE, gpus=HERE.gpus[:7]))["workers"].verdict == "fail"


def test_workers_that_come_and_go_change_what_batch_norm_sees(fractal: tuple[Experiment, ResourceEstimate]) -> None:
    assert told(fractal, HERE)["batch"].verdict == "ok"
    check = told((fractal[0], replace(fractal[1], workers=(4, 8))), HERE)["batch"]
    assert check.verdict == "note" and "statistics frozen" in check.remedy


def test_a_full_disk_is_foreseen(fractal: tuple[Experiment, ResourceEstimate]) -> None:
    check = told(fractal, HERE, free_disk=10**9)["checkpoints"]
    assert check.verdict == "fail" and "loop.keep_last" in check.remedy


def test_nodes_that_differ_are_named() -> None:
    other = replace(HERE, host="there", versions=HERE.versions | {"torch": "2.12.0"})
    checks = {check.name: check for check in cluster_checks([HERE, other], HERE)}
    assert checks["versions"].verdict == "fail" and "there has torch 2.12.0 and not 2.13.0" in checks["versions"].found
    assert {check.verdict for check in cluster_checks([HERE, HERE], HERE)} == {"ok"}


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    with connect(RaySession(num_cpus=2, object_store_mb=100)):
        import ray

        yield ray.get_runtime_context().gcs_address


def test_the_nodes_of_a_cluster_see_the_folder(ray_address: str, tmp_path: Path) -> None:
    nodes = examine_nodes(ray_address, str(tmp_path / "runs"))
    assert [node.storage for node in nodes] == [""] and nodes[0].versions == examine(str(tmp_path)).versions
    assert list(tmp_path.iterdir()) == []
    diagnosis = diagnose(MachineArguments(output=str(tmp_path / "runs"), address=ray_address))
    found: dict[str, Any] = diagnosis.to_json()
    assert verdicts(found) | {"nodes": "ok", "versions": "ok", "storage": "ok"} == verdicts(found)


def test_another_folder_of_the_same_name_is_noticed(tmp_path: Path) -> None:
    assert "another folder" in examine(str(tmp_path), marker="left-by-another-node").storage


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_noticed(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written" in examine(str(tmp_path / "runs")).storage
