"""Every command ends with what to do next, and that works when it is copied, also from folders with odd names."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.training.job import TrainJob
from pipelines.training.run_logger import run_name
from tests.support.command_line import SAMPLE


def offered(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """Run `rtp words`; the command after "next:" as a shell reads it, without rtp."""
    assert main([str(word) for word in words]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    rtp, *command = shlex.split(line.removeprefix("next: "))
    assert rtp == "rtp"
    return command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: its name needs quotes, and MLflow's database lies below it."""
    odd = tmp_path / "my lab's $HOME"
    odd.mkdir()
    monkeypatch.chdir(odd)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return odd


def test_what_is_offered_leads_from_the_source_to_a_score_and_says_what_lies_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect = offered(
        capsys, "preprocess", SAMPLE, "my stores", "--split", "val", "--encoder", "hash", "--workers", "0"
    )
    assert inspect == ["inspect", "my stores/metaworld_sample/1.0.0/val"]
    flags = ["--data", inspect[1], "--validation", inspect[1], "--output", "my runs/a", "--loop.steps", "1"]
    evaluate = offered(capsys, "train", "rt1_tiny", *flags, "--loop.evaluate_windows", "8")
    assert evaluate == ["evaluate", "my runs/a", "--data", inspect[1]]
    assert offered(capsys, "inspect", "my runs/a") == evaluate
    assert main(["inspect", "my runs/a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["kind"], found["recipe"], found["step"], found["steps"]) == ("run", "rt1_tiny", 1, 1)
    assert main(["inspect", found["stores"][0]]) == 0
    assert "as --validation" in capsys.readouterr().out
    assert main(["inspect", "my runs/a/checkpoints/step-00000001"]) == 0
    assert "checkpoint of rt1_tiny, at step 1 of 1" in capsys.readouterr().out
    of_bundle = offered(capsys, "export", "my runs/a", "bundle")
    assert main(["inspect", "bundle"]) == 0
    assert "trained on these: give held-out stores" in (shown := capsys.readouterr().out)
    assert max(len(line) for line in shown.splitlines() if "/" not in line) <= 80
    assert f"bundle, at step 1\n{'model':<14}RT1Config" in shown
    assert main([*of_bundle, "--no-perturbations", "--bootstrap-samples", "10"]) == 0


def test_a_store_to_train_on_offers_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--encoder", "hash", "--workers", "0", "--limit", "2"]
    inspect = offered(capsys, "preprocess", SAMPLE, "stores", "--split", "train", *flags)
    assert offered(capsys, *inspect)[:4] == ["train", "rt1_metaworld", "--data", inspect[1]]
    for flag in ("--audit", "--verify"):
        assert main(["inspect", "nowhere", flag]) == 2


def test_runs_of_a_recipe_have_names_that_tell_them_apart() -> None:
    from pipelines.catalogue import load_recipe

    def name(output: str) -> str:
        return run_name(TrainJob(experiment=load_recipe("rt1_tiny"), stores=(), output=output, tracking_uri=""))

    assert [name("/a/first"), name("s3://b/second/"), name("/runs/rt1_tiny")] == [
        "rt1_tiny first",
        "rt1_tiny second",
        "rt1_tiny",
    ]
