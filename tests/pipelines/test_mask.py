"""`rtp mask`, and a model that is trained, scored and served on the marks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.publishing.policy import load_policy
from preprocessing.store.episode_store import EpisodeStore


def test_a_store_is_marked_and_a_model_trained_scored_and_served_on_it(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marked = str(shutil.copytree(store, tmp_path / "marked" / Path(store).name))
    opened = EpisodeStore.open(marked)
    boxes = [{"episode": n, "box": [n, n, n + 8, n + 9]} for n in range(opened.num_episodes - 1)]
    Path("boxes.jsonl").write_text("".join(json.dumps(box) + "\n" for box in boxes))
    assert main(["mask", marked, "--detector", "boxes:boxes.jsonl", "--workers", "0", "--json"]) == 0
    account = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert account["marked"] == len(boxes) and account["not_marked"] == {"the file has no box for it": 1}
    flags = ["--loop.steps", "2", "--loop.global-batch", "4", "--loop.micro-batch", "4"]
    masked = ["--model.image-channels", "rgb+mask"]
    assert main(["train", "rt1_tiny", "--data", marked, "--output", "run", *flags, *masked]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", marked, "--bootstrap-samples", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["evaluate", "run", "--data", store]) == 2
    assert "has no object masks" in capsys.readouterr().err
    frame, (verb, *_) = opened.read_rows(0, 0, ["image"])["image"][0].as_py(), account["verbs"]
    assert load_policy("run").act(frame, verb, object_box=[3, 4]).frames_seen == 1
    with pytest.raises(ValueError, match="object_box: it is missing"):
        load_policy("run").act(frame, verb)
    assert main(["replay", "run", "--data", marked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["agrees"] and report["same_tokens"] == report["tokens"] > 0


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
