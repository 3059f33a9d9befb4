"""The training loop on the real command line: ended in every way there is, and taken up again."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.stop_file import STOPPED_EXIT_CODE
from cluster.storage import CheckpointFolder
from pipelines.cli import main
from pipelines.training.run_files import read_metrics
from preprocessing.audit.evidence import Verdict
from preprocessing.audit.store_audit import audit
from preprocessing.store.episode_store import EpisodeStore
from rt_models.rt1 import RT1
from tests.support.command_line import Rtp, environment, rtp_command


def losses(output: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(output / "metrics.jsonl") if "loss" in line}


def interrupted(command: list[str], output: Path, number: signal.Signals, after: int) -> int:
    """Start the command, send it the signal once a checkpoint beyond step `after` stands; its exit code."""
    folder, deadline = CheckpointFolder(output / "checkpoints"), time.monotonic() + 120
    process = subprocess.Popen(command, cwd=output.parent, env=environment())
    while (latest := folder.latest()) is None or latest.step <= after:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(timeout=60)


def test_killed_preempted_resumed_and_evaluated(
    rtp: Rtp, rtp_here: Rtp, store: str, mlflow_database: Path, tmp_path: Path
) -> None:
    """A run that was killed, then told to leave, and continued ends with the numbers of one that was left alone."""
    common = ["train", "rt1_tiny", "--data", store, "--loop.checkpoint_every", 2]
    output = tmp_path / "disturbed"
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_database, tmp_path / "runs/mlflow.db")
    flags = [*common, "--output", output, "--loop.steps", 5000]
    folder = CheckpointFolder(output / "checkpoints")
    assert interrupted(rtp_command(*flags), output, signal.SIGKILL, 0) == -signal.SIGKILL
    killed = folder.latest()
    assert killed is not None
    code = interrupted(rtp_command(*flags, "--resume"), output, signal.SIGTERM, killed.step)
    told = folder.latest()
    assert code == STOPPED_EXIT_CODE and told is not None and killed.step < told.step < 5000
    assert not (output / "STOP").exists()
    end = told.step + 2
    rtp(*common, "--output", output, "--loop.steps", end, "--resume")
    rtp(*common, "--output", tmp_path / "undisturbed", "--loop.steps", end)
    assert losses(output) == losses(tmp_path / "undisturbed")
    scores = rtp_here("evaluate", output, "--data", store, "--bootstrap-samples", 100)
    assert scores["step"] == end
    assert 0 <= scores["evaluations"][0]["token_accuracy"]["mean"] <= 1


def test_what_would_change_a_run_silently_is_refused(
    rtp_here: Rtp, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = str(tmp_path / "run")
    rtp_here("train", "rt1_tiny", "--data", store, "--output", output, "--loop.steps", 1)
    again = ["train", "rt1_tiny", "--data", store, "--output", output]
    for flags, words in (
        ([], "add --resume to continue it"),
        (["--resume", "--loop.seed", "7"], "loop.seed was 0 and is now 7"),
        (["--resume", "--scaling", "Identity"], "was trained under contract"),
    ):
        assert main([*again, *flags]) == 2
        assert words in capsys.readouterr().err
    before = Path(output, "metrics.jsonl").read_bytes()
    for file in Path(output).glob("checkpoints/*/engine/shard*"):
        file.unlink()
    for flags in ([], ["--resume"]):  # it would begin anew in the folder of a run whose checkpoints may come back
        assert main([*again, *flags]) == 2
        assert "holds a run of which no checkpoint is whole" in capsys.readouterr().err
    assert Path(output, "metrics.jsonl").read_bytes() == before


def test_a_model_that_reads_object_masks_is_refused_with_the_way_to_train_it(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", store, "--output", "run", "--model.image_channels", "rgb+mask"]
    assert main(["train", "rt1_tiny", *flags]) == 2
    assert "has no object masks: make them with rtp mask" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_blows_up_stops_and_says_so(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", store, "--output", "run", "--loop.steps", "50", "--optimizer.lr", "1e30"]
    assert main(["train", "rt1_tiny", *flags]) == 1
    assert "lower optimizer.lr" in capsys.readouterr().err


def poisoned(monkeypatch: pytest.MonkeyPatch, micro_batches: set[int]) -> None:
    """The losses of these micro-batches are NaN."""
    seen, honest = itertools.count(), RT1.loss

    def loss(model: RT1, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return honest(model, batch) * (math.nan if next(seen) in micro_batches else 1)

    monkeypatch.setattr(RT1, "loss", loss)


def test_an_update_without_a_finite_gradient_is_skipped_on_request_and_reported(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    poisoned(monkeypatch, {4, 8})  # two micro-batches an update: the third and the fifth
    flags = ["--data", store, "--output", "run", "--loop.steps", "7", "--loop.on_nonfinite", "skip"]
    assert main(["train", "rt1_tiny", *flags, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert result["skipped_steps"] == 2 and "2 updates skipped" in printed.out
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6, 7]
    assert all(math.isfinite(value) for value in losses(tmp_path / "run").values())


def test_training_ends_early_and_keeps_the_best(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate that spoils the model after some steps."""
    monkeypatch.chdir(tmp_path)
    every = [
        "--loop.evaluate_every",
        "2",
        "--loop.checkpoint_every",
        "2",
        "--loop.patience",
        "3",
        "--loop.keep_last",
        "1",
    ]
    flags = ["--data", store, "--validation", store, "--output", "run", "--loop.steps", "60", "--optimizer.lr", "0.1"]
    assert main(["train", "rt1_tiny", *flags, *every, "--loop.evaluate_windows", "16", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    measured = {m["step"]: m["validation_loss"] for m in read_metrics("run/metrics.jsonl") if "validation_loss" in m}
    best = min(measured, key=lambda step: measured[step])
    assert result["ended_early"] == max(measured) == best + 6 < 60
    assert result["best_step"] == best
    assert [checkpoint.step for checkpoint in CheckpointFolder("run/checkpoints").all()] == [best, best + 6]
    assert main(["train", "rt1_tiny", *flags, *every, "--resume", "--json"]) == 0  # nothing is left to train
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == best + 6


def test_a_run_on_an_object_store_has_its_metrics_there(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", store, "--output", "memory://runs/remote", "--loop.checkpoint_every", "2"]
    assert main(["train", "rt1_tiny", *flags, "--loop.steps", "2"]) == 0
    assert main(["train", "rt1_tiny", *flags, "--loop.steps", "4", "--resume"]) == 0
    assert [line["step"] for line in read_metrics("memory://runs/remote/metrics.jsonl")] == [1, 2, 3, 4]
    assert main(["train", "rt1_tiny", *flags, "--loop.log_samples", "--loop.steps", "6", "--resume"]) == 0


def test_a_store_that_contradicts_its_spec_is_not_trained_on_unasked(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = EpisodeStore.open(store)
    wrong = Verdict(name="gripper_sign", finding="contradicted", measured=-0.98, sentence="it opens where it closes")
    monkeypatch.setattr(
        "pipelines.training.checks.saved_or_measured", lambda _: replace(audit(opened), verdicts=(wrong,))
    )
    flags = ["train", "rt1_tiny", "--data", store, "--output", "run", "--loop.steps", "1"]
    assert main(flags) == 2
    assert "gripper_sign: it opens where it closes" in (said := capsys.readouterr().err)
    assert "--accept gripper_sign" in said and list(tmp_path.iterdir()) == []
    assert main([*flags, "--accept", "gripper_sign"]) == 0
    assert main([*flags, "--accept", "nonsense"]) == 2
