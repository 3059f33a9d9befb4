"""`rtp evaluate` as it is used: what it prints, saves, tracks and draws, and what it says of episodes it has seen."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipelines.catalogue import load_recipe
from pipelines.cli import main
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.record import file_name, home_of, is_seen, metrics_of
from pipelines.evaluation.report import Comparison, EpisodeReport, EvaluationReport
from pipelines.evaluation.scoring import Evaluation, evaluation_of
from pipelines.evaluation.store_evaluations import pictures
from pipelines.evaluation.tables import print_tables
from pipelines.publishing.folder import TrainedModel, write_bundle
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.training_stores import StoreReference
from pipelines.tracking.local_database import address_of
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from tests.support.html_tags import read_page
from tests.support.reports import episode_report, interval

QUICK = ["--bootstrap-samples", "10", "--no-perturbations"]


@pytest.fixture(scope="module")
def trained(store: str) -> TrainedModel:
    """An untrained model, said to come from a run on other episodes of the same dataset."""
    recipe, contract = load_recipe("rt1_tiny"), training_contract(load_recipe("rt1_tiny"), [EpisodeStore.open(store)])
    (dataset,) = contract.datasets
    statistics = replace(dataset.statistics, count=dataset.statistics.count + 1)
    contract = replace(contract, datasets=(replace(dataset, statistics=statistics),))
    metadata = {"stores": ["/elsewhere/train"], "git_revision": "none", "experiment": {"name": "rt1_tiny"}}
    return TrainedModel(
        model=recipe.model.build().eval(),
        contract=contract,
        step=7,
        source="run",
        origin=ModelOrigin.from_json(metadata),
        instructions=Instructions(contract.encoder, {}),
    )


@pytest.fixture
def bundle(trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model as a folder whose name a shell would split."""
    folder = tmp_path / "my run"
    folder.mkdir()
    write_bundle(trained, folder)
    monkeypatch.chdir(tmp_path)
    return "my run"


@pytest.fixture(scope="module")
def evaluation(trained: TrainedModel, store: str) -> Evaluation:
    config = EvaluationConfig(bootstrap_samples=10)
    return evaluation_of(trained.model, trained.contract, EpisodeStore.open(store), config)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--batch", "0"], "--batch must be 1 or more, got 0"),
        (["--bootstrap-samples", "-5"], "--bootstrap-samples must be 1 or more, got -5"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--web.examples", "0"], "--web.examples must be 1 or more, got 0"),
        (["--web.answer-tokens", "0"], "--web.answer-tokens must be 1 or more, got 0"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(
    words: list[str], sentence: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "nowhere", "--data", store, *words]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_it_saves_a_report_and_says_what_to_do_next(
    bundle: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", bundle, "--data", store, *QUICK, "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    saved = json.loads(Path(result["report"]).read_text())
    assert Path(result["report"]).parent == Path("my run/evaluations")
    assert saved["evaluations"] == result["evaluations"] and saved["step"] == 7
    assert not result["evaluations"][0]["seen_in_training"] and "among the training stores" not in out
    (line,) = [line for line in out.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: "))
    assert words[:3] == ["rtp", "register", "my run"] and words[-2:] == ["--data", store]


def test_the_report_goes_where_it_is_asked_to_go_or_nothing_is_measured(
    bundle: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", bundle, "--data", store, *QUICK, "--output", "new/scores.json"]) == 0
    assert json.loads(Path("new/scores.json").read_text())["evaluations"][0]["steps"] == 254
    assert not Path("my run/evaluations").exists()
    capsys.readouterr()
    assert main(["evaluate", bundle, "--data", store, *QUICK, "--output", "new"]) == 2
    captured = capsys.readouterr()
    assert "--output new is a folder: give a file in it" in captured.err and captured.out == ""


def test_a_folder_that_nobody_may_write_in_costs_the_file_and_not_the_scores(
    bundle: str, store: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path("my run/evaluations").write_text("in the way")
    assert main(["evaluate", bundle, "--data", store, *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["report"] is None
    assert "is not saved beside the run" in caplog.text and "--output FILE" in caplog.text


def test_scores_come_out_although_tracking_is_away(
    trained: TrainedModel, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Path("run").mkdir()
    write_bundle(replace(trained, origin=replace(trained.origin, mlflow_run_id="0" * 32)), Path("run"))
    for uri in ("http://127.0.0.1:9", f"sqlite:///{tmp_path}/gone.db"):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow sets to where it was pointed last
        Path("run/run.json").write_text(json.dumps({"mlflow_run_id": "0" * 32, "uri": uri}))
        assert main(["evaluate", "run", "--data", store, *QUICK]) == 0
        assert "the scores are not in MLflow" in caplog.text
        caplog.clear()
    assert len(list(Path("run/evaluations").iterdir())) == 1 and not Path("gone.db").exists()


def test_scores_land_in_the_runs_own_mlflow(
    trained: TrainedModel, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.tracking.mlflow_run import TrainingRun

    monkeypatch.chdir(tmp_path)
    uri = address_of(tmp_path / "other place/mlflow.db")
    run = TrainingRun(uri=uri, experiment="e", name="r", params={}, run_id=None)
    run.finish()
    Path("run").mkdir()
    write_bundle(replace(trained, origin=replace(trained.origin, mlflow_run_id=run.run_id)), Path("run"))
    Path("run/run.json").write_text(json.dumps({"mlflow_run_id": run.run_id, "uri": uri}))
    assert main(["evaluate", "run", "--data", store, *QUICK]) == 0
    client = run._mlflow.MlflowClient()
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert 0 < found.data.metrics["evaluation/metaworld_sample/val/scaled_error"] < 10
    assert "evaluation/metaworld_sample/val/error/world_vector_x" in found.data.metrics
    (file,) = client.list_artifacts(run.run_id, "evaluations")
    assert file.path.startswith("evaluations/step-7-metaworld_sample-val-")


def test_a_store_that_was_trained_on_is_called_that_wherever_it_lies(
    trained: TrainedModel, store: str, tmp_path: Path
) -> None:
    opened = EpisodeStore.open(store)
    assert not is_seen(trained, opened)
    by_path = replace(trained, origin=ModelOrigin.from_json({"stores": [store + "/"]}))
    assert is_seen(by_path, opened)
    copied = shutil.copytree(store, tmp_path / "copy")
    by_files = ModelOrigin(stores=(StoreReference.of(EpisodeStore.open(str(copied)), str(tmp_path)),))
    assert is_seen(replace(trained, origin=by_files), opened)
    on_it = replace(trained, contract=training_contract(load_recipe("rt1_tiny"), [opened]))
    assert is_seen(on_it, EpisodeStore.open(str(copied)))


def test_a_seen_store_is_warned_of_and_never_proposed_as_held_out(
    trained: TrainedModel, store: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    write_bundle(replace(trained, origin=replace(trained.origin, stores=(StoreReference(path=store),))), Path("run"))
    assert main(["evaluate", "run", "--data", store, *QUICK]) == 0
    out = capsys.readouterr().out
    assert f"{store} is among the training stores of this model" in out
    assert "next: rtp register run --name rt1_tiny\n" in out


def test_what_is_evaluated_has_one_home_and_another_file_for_other_data(store: str) -> None:
    for model in ("runs/a", "runs/a/", "runs/a/checkpoints", "runs/a/checkpoints/step-00000007"):
        assert home_of(model) == "runs/a"
    assert home_of("models:/my policy@champion") == "runs/my-policy@champion"
    opened = EpisodeStore.open(store)
    assert file_name(7, [opened]) == file_name(7, [opened]) != file_name(8, [opened])
    assert re.fullmatch(r"step-7-metaworld_sample-val-and-1-more-[0-9a-f]{8}\.json", file_name(7, [opened, opened]))


def test_metric_names_hold_what_mlflow_takes() -> None:
    report = episode_report(
        dataset="a:b", split="train[:10%]", token_accuracy=interval(0.5), scaled_error=interval(0.1)
    )
    prefix = "evaluation/a_b/train__10__"
    assert metrics_of(report) == {f"{prefix}/token_accuracy": 0.5, f"{prefix}/scaled_error": 0.1}


# --- tables ---


def printed(report: EvaluationReport, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        print_tables(report, console)
    return capture.get()


def test_every_table_is_whole_at_80_columns(evaluation: Evaluation) -> None:
    report = evaluation.report
    assert isinstance(report, EpisodeReport)
    row = replace(report.per_dimension["world_vector_x"], unit="closedness")
    names = [f"base_displacement_vector_of_the_left_hand_{axis}" for axis in "xyz"] + [
        "w" * 70 + axis for axis in "xyz"
    ]
    per_dimension = dict(report.per_dimension) | dict.fromkeys(names, row)
    report = replace(report, per_dimension=per_dimension, before=Comparison(scores=report.headlines()))
    text = printed(report, 80)
    tables = [line for line in text.splitlines() if not line.startswith(report.store)]
    assert max(map(len, tables)) <= 80 and "…" not in text
    first_column = "".join(line[1:20].split(" ")[0] for line in text.splitlines())
    for name in [*report.per_dimension, *names]:
        assert name in first_column, name
    for word in ("policy,", "swapped", "instructions", "previous action", "scaled error", "token accuracy [95 %]"):
        assert word in text
    assert printed(report, 200).count("\n") < text.count("\n")


# --- pictures ---


def test_predicted_beside_recorded_under_the_frames(bundle: str, store: str) -> None:
    assert main(["evaluate", bundle, "--data", store, *QUICK, "--html", "deep/page.html", "--episodes", "3"]) == 0
    text = Path("deep/page.html").read_text()
    tags = read_page(text)
    assert tags.count["section"] == 3 and tags.count["svg"] == 3 * 5 + 5 and tags.count["polyline"] == 3 * 5 * 2
    assert text.count(">recorded ") == text.count(">predicted ") == 15 and "world_vector_x [" in text
    assert text.count("where the model looks, at steps 0, ") == 3
    assert all(text.count(f"<th>{name}</th>") == 3 for name in ("TokenLearner", "layer 1", "layer 2"))


def test_the_curves_hold_the_episodes_own_values(evaluation: Evaluation, store: str) -> None:
    assert evaluation.predictions is not None and evaluation.predicted_NA is not None
    known = replace(evaluation, predicted_NA=evaluation.predictions.physical_NA)
    html = pictures(known, EpisodeStore.open(store), limit=24)
    points = re.findall(r'<polyline points="([^"]*)"', html)
    assert len(points) == 24 * 5 * 2
    assert points[::2] == points[1::2], "who says what was recorded draws the same line"
    lengths = [len(line.split()) for line in points[::10]]
    assert sum(lengths) == 254 and lengths == np.bincount(evaluation.predictions.episode_N).tolist()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--html", "s3://bucket/page.html"], "must be a local file"),
        (["--episodes", "-1"], "--episodes must be 0 or more, got -1"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_is_loaded(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "nowhere", "--data", "nothing", *flags]) == 2
    assert words in capsys.readouterr().err
