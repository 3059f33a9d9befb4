"""RT-2 on the real command line: web data preprocessed, co-trained, interrupted and continued, scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.catalogue import load_recipe
from pipelines.cli import main
from pipelines.publishing.folder import read_bundle
from pipelines.publishing.trained_model import load_trained
from pipelines.train import parse_arguments
from pipelines.training.co_fine_tuning import texts
from pipelines.training.data import resolved
from pipelines.training.run_files import read_metrics
from preprocessing.store.web_store import open_store
from rt_models.rt2 import RT2Config
from rt_models.rt2_vlm import LoRA, RT2VLMConfig

SMALL = [
    "--launch",
    "InProcess",
    "--engine",
    "TorchEngineConfig",
    "--loop.global_batch",
    "8",
    "--loop.micro_batch",
    "4",
]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("web") / "colours"
    folder.mkdir()
    lines = []
    for name in ("red", "green", "blue"):
        Image.new("RGB", (20, 20), name).save(folder / f"{name}.png")
        lines.append({"image": f"{name}.png", "question": "which colour is it?", "answer": name})
        lines.append({"image": f"{name}.png", "caption": f"a {name} picture"})
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [str(folder), str(folder.parent / "stores"), "--format", "jsonl", "--workers", "0"]
    assert main(["preprocess", *words]) == 0
    return str(folder.parent / "stores/colours/1.0.0/train")


def test_co_trained_continued_and_scored(
    store: str, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    common = ["train", "rt2_tiny", *SMALL, "--data", store, web, "--loop.log_every", "1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*common, "--output", str(whole), "--loop.steps", "3", "--schedule", "ConstantSchedule"]) == 0
    flags = [*common, "--output", str(parts), "--schedule", "ConstantSchedule"]
    assert main([*flags, "--loop.steps", "1"]) == 0
    assert main([*flags, "--loop.steps", "3", "--resume"]) == 0
    swapped = [web if word == store else store if word == web else word for word in flags]
    capsys.readouterr()
    assert main([*swapped, "--loop.steps", "4", "--resume"]) == 2
    assert "in this order, and these are" in capsys.readouterr().err
    lines = {run: [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line] for run in (whole, parts)}
    assert [line["loss"] for line in lines[whole]] == [line["loss"] for line in lines[parts]]
    for line in lines[whole]:
        assert line["samples/metaworld_sample"] == line["samples/colours"] == 4
        assert 0 <= line["padding_share"] < 0.5 and line["loss/colours"] > 0

    trained = load_trained(str(parts))
    assert isinstance(trained.model.config, RT2Config) and trained.model.config.tokenizer.merges
    capsys.readouterr()
    scored = [
        "evaluate",
        str(parts),
        "--data",
        store,
        web,
        "--before",
        str(whole),
        "--bootstrap-samples",
        "20",
        "--no-perturbations",
        "--json",
    ]
    assert main(scored) == 0
    robot, pictures = evaluations(capsys)
    assert robot["before"]["token_accuracy"] == robot["token_accuracy"]  # the same weights
    assert pictures["questions"] == 3 and pictures["captions"]["images"] == 3
    assert pictures["before"]["vqa_accuracy"] == pictures["vqa_accuracy"]


def evaluations(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])["evaluations"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--co-fine-tuning.robot-share", "1"], "robot_share is 1, so web data would never be drawn"),
        (["--co-fine-tuning.robot-share", "2"], "co_fine_tuning.robot_share must be above 0 and at most 1, got 2.0"),
        (["--loop.segment-windows", "4"], "RT-2 trains on single samples: set loop.segment_windows 1"),
        (["--co-fine-tuning.robot-share", "0"], "robot_share must be above 0 and at most 1, got 0.0"),
        (["--model.decoder.num-heads", "0"], "decoder.num_heads must be a whole number and at least 1, got 0"),
        (["--model.text.vocabulary", "Integers"], "model.text.vocabulary: no config class 'Integers': did you mean"),
        (["--model.text.vocabulary", "ReservedTokens"], "no token of its own for '<loc0000>'"),
        (["--model.max-tokens", "9"], "tokens and the context holds 9: shorten it or raise the model's max_tokens"),
        (["--model.vocab-size", "300"], "300 tokens has no room for 256 bytes and 256 integers"),
        (["--mixture.weights", "colors", "1"], "mixture.weights names 'colors', which no store holds"),
    ],
)
def test_bad_input_is_one_sentence(
    store: str, web: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    words = ["train", "rt2_tiny", *SMALL, "--data", store, web, "--output", str(tmp_path / "run"), *flags]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_store_given_twice_is_refused_before_anything_is_written(
    store: str, web: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "rt2_tiny", *SMALL, "--data", store, web, web, "--output", str(tmp_path / "run")]
    assert main(words) == 2
    assert "stores cannot be mixed: colours is given more than once" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_rarest_tokens_of_the_stores_become_actions(store: str, web: str) -> None:
    flags = ["--model.text.vocabulary", "LeastFrequentTokens", "--model.text.vocabulary.frequency=corpus"]
    given = parse_arguments(["rt2_tiny", "--data", store, web, "--output", "run", *flags]).experiment
    with pytest.raises(ValueError, match="frequency corpus needs the corpus: give --data"):
        given.model.build_text()  # type: ignore[union-attr]
    stores = [open_store(store), open_store(web)]
    model = resolved(given, stores).model
    assert isinstance(model, RT2Config) and resolved(given, stores).model == model
    text = model.build_text()
    used = {
        number
        for line in texts(stores, model.text, model.cameras, model.state)
        for number in text.tokenizer.encode(line)
    }
    assert len(text.action_ids) == 256 and not used.intersection(text.action_ids)


def test_a_pretrained_models_rarest_tokens_are_counted_too(
    store: str, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="needs the extra vlm")
    from tests.support.rt2_folders import save_smolvlm

    flags = ["--model.text.vocabulary", "LeastFrequentTokens", "--model.text.vocabulary.frequency=corpus"]
    flags += ["--model.path", str(save_smolvlm(tmp_path)), "--model.tuning", "LoRA", "--model.tuning.rank", "2"]
    given = parse_arguments(["rt2_paligemma_3b", "--data", store, web, "--output", "run", *flags]).experiment
    model = resolved(given, [open_store(store), open_store(web)]).model
    assert isinstance(model, RT2VLMConfig) and model.tuning == LoRA(rank=2)
    assert len(model.build_text().action_ids) == 256


def test_changing_the_tokenizer_on_resume_is_not_possible(store: str, web: str) -> None:
    """Other texts would mean other tokens: the config of a run carries what it has learnt."""
    both = resolved(load_recipe("rt2_tiny"), [open_store(store), open_store(web)]).model
    alone = resolved(load_recipe("rt2_tiny"), [open_store(store)]).model
    assert isinstance(both, RT2Config) and isinstance(alone, RT2Config)
    assert both.tokenizer != alone.tokenizer
    assert resolved(load_recipe("rt2_tiny"), [open_store(store), open_store(web)]).model == both


def test_lora_trains_the_rows_of_added_tokens_to_the_exported_model(
    store: str, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, continued and exported: what learnt to say an action is in the file that leaves the house."""
    pytest.importorskip("transformers", reason="needs the extra vlm")
    from tests.support.rt2_folders import save_paligemma

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run, bundle = str(tmp_path / "run"), str(tmp_path / "bundle")
    flags = ["--model.tuning", "LoRA", "--model.tuning.rank", "2", "--model.text.vocabulary", "AddedTokens"]
    flags += ["--schedule.warmup-steps", "0", "--optimizer.lr", "1e-2", "--engine.precision", "fp32"]
    words = ["train", "rt2_paligemma_3b", *SMALL, *flags, "--model.path", str(save_paligemma(tmp_path / "model"))]
    words += ["--data", store, web, "--output", run]
    frozen = [*words, "--model.tuning.embeddings", "frozen"]
    assert main([*frozen, "--loop.steps", "1"]) == 2 and not Path(run, "checkpoints").exists()
    assert main([*words, "--loop.steps", "1"]) == 0
    once = load_trained(run).model.state_dict()
    assert main([*words, "--loop.steps", "2", "--resume"]) == 0
    assert main(["export", run, bundle]) == 0
    trained = read_bundle(Path(bundle)).model.state_dict()
    moved = {name for name, value in trained.items() if not torch.equal(value, once[name])}
    assert moved == {name for name in trained if "lora_" in name or name.endswith("new_rows")}
