"""The commands on a GPU, in processes as they are started: killed and resumed, evaluated, served, swept."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason="needs pyarrow")
pytest.importorskip("mlflow", reason="needs mlflow")
pytest.importorskip("ray", reason="needs Ray")
pytest.importorskip("websockets", reason="needs websockets")

from cluster.storage import CheckpointFolder
from pipelines.cli import main
from pipelines.training.run_files import read_metrics
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.command_line import REPOSITORY, environment, rtp_command
from tests.support.policy_clients import OpenpiRobot
from tests.support.servers import free_ports, process, wait_for

PATIENCE_S = 120
OF_A_GPU_GB = 0.3
"""A training of rt1_tiny takes less of a GPU, and its process takes more of the machine."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that was killed and resumed, and the same run undisturbed."""

    disturbed: Path
    undisturbed: Path
    killed_at: int


def ended(home: Path, *arguments: object) -> dict[str, Any]:
    """`rtp ... --json` run to its end with exit code 0: its last line."""
    command = rtp_command(*arguments, "--json")
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def trained(store: str, device: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("runs")
    disturbed, undisturbed = home / "disturbed", home / "undisturbed"
    common = ["train", "rt1_tiny", "--data", store, "--launch", "InProcess", "--loop.checkpoint-every", 5]
    killed_at = killed(rtp_command(*common, "--output", disturbed, "--loop.steps", 100_000), disturbed)
    end = killed_at + 10
    ended(home, *common, "--output", disturbed, "--loop.steps", end, "--resume")
    ended(home, *common, "--output", undisturbed, "--loop.steps", end)
    return Trained(disturbed=disturbed, undisturbed=undisturbed, killed_at=killed_at)


def killed(command: list[str], output: Path) -> int:
    """Kill the training once it has a checkpoint; the step of its newest one."""
    folder, deadline = CheckpointFolder(output / "checkpoints"), time.monotonic() + PATIENCE_S
    running = subprocess.Popen(command, cwd=output.parent, env=environment())
    while folder.latest() is None:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait(timeout=60) == -signal.SIGKILL
    latest = folder.latest()
    assert latest is not None
    return latest.step


def losses(output: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(output / "metrics.jsonl") if "loss" in line}


def test_a_killed_run_goes_on_to_the_losses_of_an_undisturbed_one(trained: Trained, device: str) -> None:
    """On a GPU cuDNN adds in any order, and Adam makes more of it."""
    one, other = losses(trained.disturbed), losses(trained.undisturbed)
    assert list(one) == list(other) == list(range(1, trained.killed_at + 11))
    assert list(one.values()) == pytest.approx(list(other.values()), rel=2e-2 if device == "cuda" else 0)


def test_what_was_trained_was_trained_there(trained: Trained, device: str) -> None:
    held = [line["memory_gb"] for line in read_metrics(trained.disturbed / "metrics.jsonl") if "memory_gb" in line]
    assert (max(held) < OF_A_GPU_GB) == (device == "cuda")


def test_it_is_evaluated_there_as_on_a_cpu(
    trained: Trained,
    store: str,
    device: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {}
    for where in ("cpu", device):
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        flags = ["--device", where, "--bootstrap-samples", "100", "--output", str(tmp_path / f"{where}.json")]
        assert main(["evaluate", str(trained.disturbed), "--data", store, *flags, "--json"]) == 0
        found[where] = json.loads(capfd.readouterr().out.splitlines()[-1])["evaluations"][0]
        assert (torch.cuda.max_memory_allocated() > before) == (where == "cuda")
    accuracy = {where: scores["token_accuracy"]["mean"] for where, scores in found.items()}
    assert accuracy[device] == pytest.approx(accuracy["cpu"], abs=5e-3)


def test_it_is_served_there_as_on_a_cpu(trained: Trained, store: str, device: str, tmp_path: Path) -> None:
    opened = EpisodeStore.open(store)
    encoded = opened.read_rows(0, 0, ["image"])["image"].to_pylist()[:6]
    answers = {}
    for where in dict.fromkeys(("cpu", device)):
        (port,) = free_ports(1)
        log = tmp_path / f"{where}.log"
        command = rtp_command("serve", trained.disturbed, "--port", port, "--device", where)
        with process(command, environment(), log, cwd=tmp_path) as started:
            wait_for(f"http://127.0.0.1:{port}/readyz", started, log)
            with OpenpiRobot(f"ws://127.0.0.1:{port}") as robot:
                asked = {"prompt": opened.instruction_texts[0]}
                seen = [robot.infer({"image": decode_image(frame), **asked}) for frame in encoded]
        answers[where] = np.stack([answer["tokens"] for answer in seen])
    assert (answers[device] == answers["cpu"]).mean() > 0.95


def test_it_is_swept_there(store: str, device: str, tmp_path: Path) -> None:
    sweep = REPOSITORY / "tests/support/tiny_sweep.py"
    flags = ["--data", store, "--validation", store, "--output", tmp_path / "out"]
    found = ended(tmp_path, "tune", sweep, *flags)
    good, stopped, failed = found["trials"]
    assert [good["state"], stopped["state"], failed["state"]] == ["finished", "stopped", "failed"]
    lines = read_metrics(Path(good["output"], "metrics.jsonl"))
    held = max(line["memory_gb"] for line in lines if "memory_gb" in line)
    assert (held < OF_A_GPU_GB) == (device == "cuda")
