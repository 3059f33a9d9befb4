"""The demo's whole path, cut short: a policy that has learnt nothing must be called that."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import demo
from pipelines.cli import main
from pipelines.demo import shortfalls
from pipelines.evaluation.report import EpisodeReport, PerturbedScores
from pipelines.training.result import TrainingResult
from tests.support.reports import episode_report, interval
from tests.support.short_sample import short_sample


def test_shortfalls_name_what_was_not_shown() -> None:
    def report(low: float) -> EpisodeReport:
        margin = interval(0.2, low, 0.3)
        blank = PerturbedScores(token_accuracy=interval(0.1), fall=margin, scaled_error=interval(0.2))
        return episode_report(margin={"mean_action": margin}, perturbed={"blank_images": blank})

    assert shortfalls(report(0.1)) == []
    bad = report(-0.1)
    assert len(shortfalls(bad)) == 2 and "mean action" in shortfalls(bad)[0] and "blank images" in shortfalls(bad)[1]


def test_a_demo_that_learnt_nothing_says_so_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, home = short_sample(tmp_path / "source", train=12, val=6), tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["demo", "--output", "demo", "--source", str(source), "--steps", "2", "--rollouts", "0", "--json"]) == 1
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert result["shortfalls"] and "not shown: the policy beats previous action" in printed
    assert result["registered"]["model_uri"] == "models:/rt1-demo@champion"
    assert "there is no champion yet" in result["registered"]["gates"][0]  # a later demo is compared with this one
    assert set(result["action"]) >= {"world_vector_x", "gripper_closedness_action"}
    page = Path(result["report"]).read_text()
    assert "<svg" in page and "data:image/jpeg;base64," in page and "not shown" not in page
    assert sorted(path.name for path in home.iterdir()) == ["demo", "runs"]


def test_a_training_that_was_stopped_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = TrainingResult(output=str(tmp_path), contract="", metrics={}, stopped="Ctrl-C: stopped at step 3 of 250")
    monkeypatch.setattr(demo, "run_training", lambda job: stopped)
    monkeypatch.setattr(demo, "tracking_uri", lambda: "sqlite://")
    store = SimpleNamespace(root=str(tmp_path))
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        demo._Stages(tmp_path).train({"train": store, "val": store}, 4)  # type: ignore[dict-item]


def test_without_a_simulator_the_demo_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("Meta-World does not load here: pip install 'rt-pipelines[sim]'")

    monkeypatch.setattr(demo, "prepare", missing)
    assert demo._Stages(tmp_path).act("", 2) is None
    assert "pip install 'rt-pipelines[sim]'" in " ".join(capsys.readouterr().out.split())
