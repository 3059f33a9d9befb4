"""A Rerun recording, read back by Rerun itself where it is installed; the refusals everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.support.untrained import write_untrained

QUICK = ["--no-perturbations", "--bootstrap-samples", "10", "--episodes", "2"]


def test_the_command_writes_what_rerun_reads(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rerun")
    monkeypatch.chdir(tmp_path)
    model = str(write_untrained(store, tmp_path / "untrained"))
    assert main(["evaluate", model, "--data", store, *QUICK, "--rerun", "steps.rrd"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.rrd*")) == ["steps.rrd"]
    verified = subprocess.run(
        [sys.executable, "-m", "rerun_cli", "rrd", "print", "steps.rrd"], capture_output=True, text=True, check=True
    )
    shown = verified.stdout + verified.stderr
    for entity in ("camera/image", "action/world_vector_x/recorded", "action/world_vector_x/predicted", "instruction"):
        assert entity in shown, entity
    assert "attention/TokenLearner" in shown and "attention/layer" in shown


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--data", "a", "b"], "--rerun records the steps of one store"),
        (["--env", "metaworld:door-lock"], "--rerun records the steps of one store"),
    ],
)
def test_a_recording_is_of_one_store(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "model", *words, "--rerun", "steps.rrd"]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_without_rerun_the_remedy_is_named(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["evaluate", "model", "--data", store, "--rerun", str(tmp_path / "steps.rrd")]) == 2
    assert "--rerun needs Rerun" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
