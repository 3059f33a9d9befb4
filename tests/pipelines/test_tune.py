"""`rtp tune` on the real command line: trials that are trainings, their MLflow runs, what is best, mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.launch import RayLaunch
from cluster.session import RaySession, connect
from cluster.shards import each_weight
from cluster.storage import CheckpointFolder
from pipelines.catalogue import load_recipe
from pipelines.cli import main
from pipelines.config.experiment import Experiment, InProcess
from pipelines.config.serialization import from_plain
from pipelines.evaluation.comparison import require_comparable
from pipelines.sweeps.identity import SweepIdentity
from pipelines.sweeps.trials import clone_checkpoint, with_parameters
from pipelines.train import run_training
from pipelines.training.job import TrainJob
from pipelines.training.run_files import read_metrics
from pipelines.tune import _trial_run, parse_arguments
from preprocessing.convert import ConvertConfig, convert
from rt_models.rt1 import RT1Config
from rt_models.spec import StateInput
from tests.support.command_line import REPOSITORY, SAMPLE, Rtp
from tuning.sweep import TrialResources, load_sweep, sweep_names

SWEEP = str(REPOSITORY / "tests/support/tiny_sweep.py")


@pytest.fixture(scope="module")
def stores(store: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags that name a training and a validation store."""
    config = ConvertConfig(split="train", encoder="hash", workers=0, limit=8)
    train = convert(str(SAMPLE), str(tmp_path_factory.mktemp("train")), config).store
    return ["--data", train, "--validation", store]


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """For all sweeps here; that `rtp tune` starts one of its own is seen in test_interrupts.py."""
    with connect(RaySession(num_cpus=2, log_to_driver=False)):
        yield


@pytest.fixture(scope="module")
def rtp(rtp_here: Rtp, one_ray: None) -> Rtp:
    return rtp_here


@pytest.fixture(scope="module")
def swept(rtp: Rtp, stores: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return rtp("tune", SWEEP, *stores, "--output", tmp_path_factory.mktemp("sweep") / "out")


def test_a_sweep_stops_the_bad_keeps_the_failed_and_finds_the_best(swept: dict[str, Any]) -> None:
    good, stopped, failed = swept["trials"]
    assert [good["state"], stopped["state"], failed["state"]] == ["finished", "stopped", "failed"]
    assert (good["step"], stopped["step"]) == (4, 2) and "gradient norm" in failed["reason"]
    assert swept["best"]["parameters"] == {"optimizer.lr": 3e-3} and swept["outcome"] == "complete"
    lines = read_metrics(Path(stopped["output"], "metrics.jsonl"))
    assert max(line["step"] for line in lines) == 2, "a stopped trial trains no further"
    page = Path(swept["report"]).read_text()
    assert page.count("<svg") == 2 and "gradient norm" in page


def test_trials_are_child_runs_with_every_metric_below_the_sweeps_own_run(
    swept: dict[str, Any], stores: list[str], tmp_path: Path
) -> None:
    from pipelines.tracking.mlflow_run import connect

    uri = json.loads(Path(swept["trials"][0]["output"], "run.json").read_text())["uri"]
    client = connect(uri).MlflowClient()
    parent = client.get_run(swept["mlflow_run_id"])
    assert parent.info.status == "FINISHED" and parent.data.tags["best.optimizer.lr"] == "0.003"
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id)} >= {"report.html", "best.yaml"}
    where = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    children = {run.data.tags["trial"]: run for run in client.search_runs([parent.info.experiment_id], where)}
    assert {number: run.info.status for number, run in children.items()} == {
        "0": "FINISHED",
        "1": "FINISHED",
        "2": "FAILED",
    }
    assert children["1"].data.tags["trial_state"].startswith("stopped") and "failure" not in children["1"].data.tags
    losses = client.get_metric_history(children["0"].info.run_id, "validation_loss")
    assert [metric.step for metric in losses] == [2, 4]


def test_the_best_configuration_trains_as_it_is(
    rtp: Rtp, swept: dict[str, Any], stores: list[str], tmp_path: Path
) -> None:
    flags = ["--config", swept["best"]["config"], *stores, "--output", tmp_path / "again"]
    trained = rtp("train", swept["recipe"], *flags)
    assert trained["validation_loss"] == swept["best"]["objectives"]["validation_loss"]


def test_a_finished_sweep_resumed_runs_nothing_and_a_larger_one_only_what_is_new(
    rtp: Rtp, swept: dict[str, Any], stores: list[str]
) -> None:
    before = {number: Path(swept["trials"][number]["output"], "trial.json").read_text() for number in range(3)}
    again = rtp("tune", SWEEP, *stores, "--output", swept["output"], "--resume")
    assert again["trials"] == swept["trials"] and again["mlflow_run_id"] == swept["mlflow_run_id"]
    assert {n: Path(swept["trials"][n]["output"], "trial.json").read_text() for n in range(3)} == before


def test_a_population_takes_over_weights_and_goes_on_with_other_parameters(
    rtp: Rtp, stores: list[str], tmp_path: Path
) -> None:
    sweep = REPOSITORY / "tests/support/tiny_population.py"
    done = rtp("tune", sweep, *stores, "--output", tmp_path / "out")
    (taker,) = [trial for trial in done["trials"] if trial["lineage"]]
    donor = done["trials"][taker["lineage"][0]["parent"]]
    assert taker["lineage"] == [{"step": 2, "parent": donor["number"]}]
    factor = taker["parameters"]["optimizer.lr"] / donor["parameters"]["optimizer.lr"]
    assert factor == pytest.approx(1.25) or factor == pytest.approx(1 / 1.25)
    folders = {t["number"]: CheckpointFolder(f"{t['output']}/checkpoints") for t in (taker, donor)}
    cloned, given = (folders[t["number"]].at(2) for t in (taker, donor))
    assert cloned is not None and given is not None
    assert cloned.manifest.files == given.manifest.files and cloned.metadata["cloned_from"] == given.path
    ends = [folders[t["number"]].latest() for t in (taker, donor)]
    weights = [dict(each_weight(Path(end.path) / "engine")) for end in ends if end is not None]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    # What the taker trained is what the donor's weights train into under the new parameters.
    job = TrainJob(
        experiment=from_plain(Experiment, yaml.safe_load(Path(taker["output"], "experiment.yaml").read_text())),
        stores=(stores[1],),
        validation=(stores[3],),
        output=str(tmp_path / "by-hand"),
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        resume=True,
    )
    clone_checkpoint(donor["output"], job.output, 2)
    # 2e-5 apart on some processors, where a trial has one thread and this process two.
    assert run_training(job).metrics["validation_loss"] == pytest.approx(
        taker["objectives"]["validation_loss"], rel=1e-4
    )


@pytest.mark.slow
def test_a_trial_of_two_ray_workers_with_deepspeed(rtp: Rtp, stores: list[str], tmp_path: Path) -> None:
    flags = ["--launch", "RayLaunch", "--launch.num_workers", 2, "--engine", "DeepSpeedEngineConfig"]
    smaller = ["--loop.micro_batch", 4, "--budget.trials", 1, "--scheduler", "ToTheEnd"]
    done = rtp("tune", SWEEP, *stores, "--output", tmp_path / "out", *flags, *smaller)
    (trial,) = done["trials"]
    assert trial["state"] == "finished" and trial["step"] == 4
    record = json.loads(Path(trial["output"], "trial.json").read_text())
    assert [report["step"] for report in record["reports"]] == [2, 4]


# --- Mistakes ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("optimizer.lr", "optimizer.lrr"), "optimizer.lrr is not a setting of AdamConfig: did you mean 'lr'?"),
        (("values=(3e-3,", 'values=("fast",'), "optimizer.lr: expected a number, got 'fast'"),
        (('"optimizer.lr"', '"loop.seed"'), "a sweep does not vary loop.seed"),
        (('evaluate_every": 2', 'evaluate_every": 3'), "choose a multiple of loop.evaluate_every"),
        (('recipe="rt1_tiny"', 'recipe="rt1_tny"'), "did you mean 'rt1_tiny'?"),
        (("grace_steps=2", "grace_steps=4"), "grace_steps is 4 and loop.steps 4: no trial could be stopped early"),
        (('metric="validation_loss"', 'metric="validaton_loss"'), "did you mean 'validation_loss'?"),
        (
            ('"optimizer.lr": Choice(values=(3e-3, 1e-6, 1e30))', '"model.bins": Choice(values=(16, 256))'),
            "varies model.bins, and trials that differ in bins do not compare by validation_loss: make scaled_error",
        ),
        (
            (
                '"optimizer.lr": Choice(values=(3e-3, 1e-6, 1e30))',
                '"scaling": Choice(values=({"type": "Bounds"}, {"type": "Identity"}))',
            ),
            "trials that differ in scaling do not compare by validation_loss",
        ),
        (
            ('"optimizer.lr": Choice(values=(3e-3, 1e-6, 1e30))', '"loader.relabel": Choice(values=([], ["a"]))'),
            "as they learn different actions: leave loader.relabel out of the space",
        ),
        (("def sweep", "def sweeep"), "has no function sweep()"),
        (("def sweep", "def sweep("), "mine.py is not Python"),
    ],
)
def test_one_sentence_before_anything_runs(
    change: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    text = Path(SWEEP).read_text()
    assert change[0] in text
    (tmp_path / "mine.py").write_text(text.replace(*change))
    assert main(["tune", "mine.py", "--data", "a", "--validation", "b", "--output", "out"]) == 2
    printed = capsys.readouterr().err
    assert words in printed and len(printed.strip().splitlines()) == 1, printed
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a sweep first, one of rt1_lr_wd"),
        (["rt1_lr_wdd"], "did you mean 'rt1_lr_wd'?"),
        (["rt1_lr_wd", "--optimizer.lr", "0.1", "--data", "a", "--output", "b"], "varies it, so it cannot be set"),
        (["rt1_lr_wd", "--scheduler", "Ashes", "--data", "a", "--output", "b"], "did you mean 'Asha'?"),
        (["rt1_lr_wd", "--data", "a", "--output", "b"], "give --validation STORE"),
        (["rt1_lr_wd", "--budget.trials", "0", "--data", "a", "--output", "b"], "trials must be at least 1"),
        (["rt1_lr_wd", "--budget.wall_s", "nan", "--data", "a", "--output", "b"], "limits above 0"),
        (["rt1_lr_wd", "--resources.cpus", "inf", "--data", "a", "--output", "b"], "a trial cannot hold inf CPUs"),
        (["rt1_lr_wd", "--retries", "-1", "--data", "a", "--output", "b"], "retries must be 0 or more, got -1"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metric", "path", "values", "compares"),
    [
        ("token_accuracy", "model.bins", (16, 256), False),
        ("token_accuracy", "model.binning", ("truncate", "centre"), False),
        ("token_accuracy", "model.world_vector_limit", (1.0, 2.0), False),
        ("token_accuracy", "model.num_steps", (2, 3), True),
        ("scaled_error", "model.bins", (16, 256), True),
        ("scaled_error", "loader.relabel", ([], ["a"]), False),
        ("validation_loss", "model.num_steps", (2, 3), False),  # early windows are shorter and weigh less
        ("validation_loss", "loader.mask_flags", ([], ["a"]), False),
        ("validation_loss", "mixture.weights.a", (1.0, 2.0), True),
        ("loss", "mixture.weights.a", (1.0, 2.0), False),
        ("loss", "optimizer.lr", (1e-3, 1e-2), True),
        ("samples_per_s", "model.bins", (16, 256), True),
    ],
)
def test_an_objective_must_mean_the_same_in_all_trials(
    metric: str, path: str, values: tuple[Any, ...], compares: bool
) -> None:
    variants = [with_parameters(load_recipe("rt1_tiny"), {path: value}) for value in values]
    if compares:
        require_comparable(metric, path, variants, sweep="s")
        return
    with pytest.raises(
        ValueError, match=rf"sweep s varies {path}, and trials that differ in .* do not compare by {metric}"
    ):
        require_comparable(metric, path, variants, sweep="s")


def test_a_part_that_is_chosen_and_a_setting_of_it_leave_the_sweep_as_it_is() -> None:
    part = {"type": "AdamWConfig", "weight_decay": 0.5}
    for lr in (0.25, 0.125):
        given = with_parameters(load_recipe("rt1_tiny"), {"optimizer.lr": lr, "optimizer": part}).optimizer
        assert (type(given).__name__, given.lr, given.weight_decay) == ("AdamWConfig", lr, 0.5)  # type: ignore[union-attr]
    assert part == {"type": "AdamWConfig", "weight_decay": 0.5}
    with pytest.raises(ValueError, match=r"optimizer\.lr\.x: optimizer\.lr is set to 0\.5, which has no settings"):
        with_parameters(load_recipe("rt1_tiny"), {"optimizer.lr": 0.5, "optimizer.lr.x": 1})


def test_another_sweep_is_not_continued(
    swept: dict[str, Any], stores: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["tune", SWEEP, *stores, "--output", swept["output"]]
    assert main(flags) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*flags, "--resume", "--loop.global_batch", "16"]) == 2
    assert "experiment.loop.global_batch was 8 and is now 16" in capsys.readouterr().err


@pytest.mark.parametrize("name", sweep_names())
def test_shipped_sweeps_fit_their_recipes(name: str) -> None:
    sweep, given = parse_arguments([name, "--data", "a", "--validation", "b", "--output", "c"])
    assert sweep == load_sweep(name) and sweep.name == name
    for path, dimension in sweep.space.items():
        for value in dimension.extremes():
            with_parameters(given.experiment, {path: value}).require_sizes()


def test_flags_lie_over_the_sweep_and_its_recipe() -> None:
    flags = ["--data", "a", "--output", "c", "--budget.trials", "5", "--search", "TpeSearch", "--seeds", "1", "2"]
    sweep, given = parse_arguments([SWEEP, *flags, "--scheduler", "ToTheEnd", "--loop.steps", "8"])
    assert (sweep.budget.trials, type(sweep.search).__name__, sweep.seeds) == (5, "TpeSearch", (1, 2))
    expected = replace(load_recipe("rt1_tiny").loop, steps=8, global_batch=8, evaluate_every=2)
    assert given.experiment.loop == replace(expected, evaluate_windows=8, checkpoint_every=2)


def test_all_trials_of_a_sweep_may_read_several_cameras_and_a_state() -> None:
    words = ["--data", "x", "--output", "y", "--model.cameras", "image", "wrist"]
    words += ["--model.state", "StateInput", "--model.state.noise", "0.1"]
    _, flags = parse_arguments([SWEEP, *words])
    model = flags.experiment.model
    assert isinstance(model, RT1Config) and model.cameras == ("image", "wrist") and model.state == StateInput(noise=0.1)


def test_the_simulator_of_a_sweep_is_given_by_flags() -> None:
    flags = ["--data", "a", "--output", "c", "--env", "metaworld:door-lock,window-open", "--env-episodes", "3"]
    sweep, _ = parse_arguments(["rt1_success", *flags])
    assert (sweep.env, sweep.env_episodes) == ("metaworld:door-lock,window-open", 3)


def test_a_sweep_whose_stores_have_moved_is_the_same_and_one_of_other_stores_is_not() -> None:
    before = SweepIdentity(
        sweep={"budget": 3},
        experiment={"name": "a"},
        stores=("/old/a",),
        validation=("/old/b",),
        fingerprints=("a", "b"),
        mlflow_run_id="1",
    )
    now = replace(before, stores=("/new/a",), validation=("/new/b",), sweep={"budget": 4}, mlflow_run_id=None)
    now.require_same(before, "out")
    with pytest.raises(ValueError, match="whose stores were /old/a, /old/b: /new/a, /new/b hold something else"):
        replace(now, fingerprints=("a", "c")).require_same(before, "out")
    with pytest.raises(ValueError, match=r"experiment\.name was a and is now b"):
        replace(now, experiment={"name": "b"}).require_same(before, "out")
    older = SweepIdentity.from_json({k: v for k, v in before.to_json().items() if k != "fingerprints"}, "sweep.json")
    assert SweepIdentity.from_json(json.loads(json.dumps(before.to_json())), "sweep.json") == before
    replace(now, stores=("/old/a",), validation=("/old/b",)).require_same(older, "out")
    with pytest.raises(ValueError, match="stores was"):
        now.require_same(older, "out")


@pytest.mark.parametrize(("there", "asked", "held"), [(0, None, 0), (4, None, 1), (4, 0.25, 0.25), (4, 0, 0)])
def test_a_trial_holds_a_gpu_where_there_is_one_and_is_charged_for_it(
    monkeypatch: pytest.MonkeyPatch, there: float, asked: float | None, held: float
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": there} if there else {"CPU": 2.0})
    sweep = replace(load_sweep("rt1_lr_wd"), resources=TrialResources(gpus=asked))
    experiment = replace(load_recipe("rt1_tiny"), launch=InProcess())
    job = TrainJob(experiment=experiment, stores=(), output="out", tracking_uri="")
    run = _trial_run(sweep, job, SimpleNamespace(), SimpleNamespace(changed=None))  # type: ignore[arg-type]
    assert (run.gpus, run.gpus_charged, run.cpus) == (held, held, 1)
    job = replace(job, experiment=replace(experiment, launch=RayLaunch(num_workers=2, use_gpu=True)))
    run = _trial_run(sweep, job, SimpleNamespace(), SimpleNamespace(changed=None))  # type: ignore[arg-type]
    assert (run.gpus, run.gpus_charged, run.cpus) == (0, 2, 0)  # its workers hold them
