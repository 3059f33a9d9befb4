"""`rtp mask`, and a model that is trained and scored on the marks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.publishing.policy import load_policy
from preprocessing.store.episode_store import EpisodeStore


def test_a_store_is_marked_and_a_model_trained_and_scored_on_it(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marked = str(shutil.copytree(store, tmp_path / "marked" / Path(store).name))
    boxes = [{"episode": n, "box": [n, n, n + 8, n + 8]} for n in range(EpisodeStore.open(marked).num_episodes)]
    Path("boxes.jsonl").write_text("".join(json.dumps(box) + "\n" for box in boxes))
    assert main(["mask", marked, "--detector", "boxes:boxes.jsonl", "--workers", "0", "--json"]) == 0
    account = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert account["marked"] == len(boxes) and account["not_marked"] == {}
    flags = ["--loop.steps", "2", "--loop.global-batch", "4", "--loop.micro-batch", "4"]
    masked = ["--model.image-channels", "rgb+mask"]
    assert main(["train", "rt1_tiny", "--data", marked, "--output", "run", *flags, *masked]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", marked, "--bootstrap-samples", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["evaluate", "run", "--data", store]) == 2
    assert "has no object masks" in capsys.readouterr().err
    with pytest.raises(ValueError, match="rtp serve and rtp evaluate --env do not take"):
        load_policy("run")


def test_bad_input_is_one_sentence(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--detector", "yolo:x"], "is not one of owlvit:PATH, boxes:FILE"),
        (["--detector", "boxes:nowhere.jsonl"], "does not exist"),
        (["--detector", "owlvit:nowhere"], "has no config.json"),
        ([], "detector"),
    ):
        assert main(["mask", store, *words]) == 2
        assert message in capsys.readouterr().err
    assert not Path(store, ".masks").exists()
