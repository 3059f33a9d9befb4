"""The training loop on the real command line: the same losses with and without Ray, and a kill in the middle."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Rtp, environment, rtp_command

from cluster.storage import CheckpointFolder
from pipelines.cli import main
from pipelines.train_loop import read_metrics
from preprocessing.audit import audit
from preprocessing.audit_evidence import Verdict
from preprocessing.episode_store import EpisodeStore


def losses(output: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(output / "metrics.jsonl") if "loss" in line}


def test_ray_with_two_workers_and_zero_1_trains_as_one_process_does(rtp: Rtp, store: str, tmp_path: Path) -> None:
    common = ["train", "rt1_tiny", "--data", store, "--loop.steps", 6, "--optimizer.lr", "1e-3"]
    rtp(*common, "--output", tmp_path / "alone", "--loop.micro_batch", 8)
    distributed = ["--launch", "RayLaunch", "--launch.num_workers", 2, "--engine", "DeepSpeedEngineConfig"]
    rtp(*common, "--output", tmp_path / "ray", "--loop.micro_batch", 4, *distributed)
    alone, ray = losses(tmp_path / "alone"), losses(tmp_path / "ray")
    assert list(alone) == list(ray) == [1, 2, 3, 4, 5, 6]
    assert ray == pytest.approx(alone, rel=1e-4)
    assert len(set(alone.values())) == 6


def test_killed_resumed_and_evaluated(rtp: Rtp, store: str, tmp_path: Path) -> None:
    """A run killed after its first checkpoint and continued ends with the numbers of a run that was left alone."""
    common = ["train", "rt1_tiny", "--data", store, "--loop.checkpoint_every", 2]
    killed = ["--output", tmp_path / "killed"]
    process = subprocess.Popen(rtp_command(*common, *killed, "--loop.steps", 5000), cwd=tmp_path, env=environment())
    folder = CheckpointFolder(tmp_path / "killed/checkpoints")
    deadline = time.monotonic() + 120
    while folder.latest() is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = folder.latest()
    assert reached is not None and reached.step < 5000
    end = reached.step + 2
    rtp(*common, *killed, "--loop.steps", end, "--resume")
    rtp(*common, "--output", tmp_path / "undisturbed", "--loop.steps", end)
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    scores = rtp("evaluate", tmp_path / "killed", "--data", store, "--bootstrap-samples", 100)
    assert scores["step"] == end
    assert 0 <= scores["evaluations"][0]["token_accuracy"]["mean"] <= 1


def test_what_would_change_a_run_silently_is_refused(
    rtp: Rtp, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = str(tmp_path / "run")
    rtp("train", "rt1_tiny", "--data", store, "--output", output, "--loop.steps", 1)
    again = ["train", "rt1_tiny", "--data", store, "--output", output]
    for flags, words in (
        ([], "add --resume to continue it"),
        (["--resume", "--loop.seed", "7"], "loop.seed was 0 and is now 7"),
        (["--resume", "--scaling", "Identity"], "was trained under contract"),
    ):
        assert main([*again, *flags]) == 2
        assert words in capsys.readouterr().err


def test_a_run_that_blows_up_stops_and_says_so(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", store, "--output", "run", "--loop.steps", "50", "--optimizer.lr", "1e30"]
    assert main(["train", "rt1_tiny", *flags]) == 1
    assert "lower optimizer.lr" in capsys.readouterr().err


def test_a_store_that_contradicts_its_spec_is_not_trained_on_unasked(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = EpisodeStore.open(store)
    wrong = Verdict(name="gripper_sign", finding="contradicted", measured=-0.98, sentence="it opens where it closes")
    monkeypatch.setattr("pipelines.train.audit", lambda _: replace(audit(opened), verdicts=(wrong,)))
    flags = ["train", "rt1_tiny", "--data", store, "--output", "run", "--loop.steps", "1"]
    assert main(flags) == 2
    assert "gripper_sign: it opens where it closes" in (said := capsys.readouterr().err)
    assert "--accept gripper_sign" in said and list(tmp_path.iterdir()) == []
    assert main([*flags, "--accept", "gripper_sign"]) == 0
    assert main([*flags, "--accept", "nonsense"]) == 2
