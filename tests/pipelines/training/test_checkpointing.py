"""Rank 0 chooses the checkpoint to continue from: what another rank sees of the folder must not matter."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.context import LocalContext, WorkerContext
from cluster.storage import CheckpointFolder
from pipelines.catalogue import load_recipe
from pipelines.tracking.mlflow_run import TrainingRun
from pipelines.train_loop import train
from pipelines.training.checkpointing import Checkpointer
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import prepared
from pipelines.training.run_files import METRICS, read_metrics
from tests.support.ranks import run_ranks

STEPS, SAVED = 6, (2, 4)


def job_in(output: Path, store: str, uri: str, run_id: str) -> PreparedJob:
    recipe = load_recipe("rt1_tiny")
    loop = replace(recipe.loop, steps=STEPS, checkpoint_every=2, keep_last=9, log_every=1)
    experiment = replace(recipe, loop=replace(loop, global_batch=4, micro_batch=2))
    return prepared(
        TrainJob(experiment=experiment, stores=(store,), output=str(output), tracking_uri=uri, run_id=run_id)
    )


def interrupted(whole: Path, output: Path, *, steps: tuple[int, ...] = SAVED) -> Path:
    """The run as it was after these checkpoints."""
    for step in steps:
        shutil.copytree(whole / f"checkpoints/step-{step:08d}", output / f"checkpoints/step-{step:08d}")
    (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(whole / METRICS, output)
    return output


def losses(output: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(output / METRICS)}


def whole_then_continued(
    context: WorkerContext, whole: PreparedJob, stale: dict[str, list[str]], lost: str
) -> list[Any]:
    """Rank 1 sees another listing than there is: `stale` {output: names in it}; then it looks in the folder `lost`."""
    train(context, whole)
    if context.rank == 0:
        for output in stale:
            interrupted(Path(whole.output), Path(output))
        interrupted(Path(whole.output), Path(lost, "rank-0"))
        interrupted(Path(whole.output), Path(lost, "rank-1"), steps=(2,))
    context.barrier()
    listing = CheckpointFolder._names
    for output, names in stale.items():
        if context.rank == 1:
            CheckpointFolder._names = lambda self, names=names: names  # type: ignore[method-assign]
        train(context, replace(whole, output=output))
        CheckpointFolder._names = listing  # type: ignore[method-assign]
    outcomes = []
    for changed in (None, "manifest.json", "random-00001.safetensors"):
        found = Path(lost, "rank-1/checkpoints/step-00000004")
        if context.rank == 1 and changed is not None:  # rank 1's folder now has a step 4 too, but not that of rank 0
            shutil.copytree(Path(whole.output, "checkpoints/step-00000004"), found, dirs_exist_ok=True)
            change(found / changed)
        context.barrier()
        try:
            train(context, replace(whole, output=f"{lost}/rank-{context.rank}"))
        except (ValueError, OSError) as error:
            outcomes.append((isinstance(error, ValueError), str(error)))
    return outcomes


def change(path: Path) -> None:
    if path.suffix != ".json":
        path.unlink()
        return
    manifest = json.loads(path.read_text())
    manifest["metadata"]["git_revision"] = "another"
    path.write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, store: str) -> tuple[Path, list[list[Any]]]:
    root = tmp_path_factory.mktemp("stale")
    uri = f"sqlite:///{root}/mlflow.db"
    run_id = TrainingRun(uri=uri, experiment="stale", name="all", params={}, run_id=None).run_id
    stale = {str(root / "older"): ["step-00000002"], str(root / "none"): []}
    whole = job_in(root / "whole", store, uri, run_id)
    return root, run_ranks(whole_then_continued, 2, root / "ranks", whole, stale, str(root / "lost"))


@pytest.mark.parametrize("listing", ["older", "none"])
def test_a_rank_with_a_stale_listing_continues_from_the_checkpoint_that_rank_0_chose(
    listing: str, run: tuple[Path, list[list[Any]]]
) -> None:
    root, _ = run
    assert losses(root / listing) == losses(root / "whole") and len(losses(root / listing)) == STEPS
    ends = [CheckpointFolder(root / name / "checkpoints").latest() for name in ("whole", listing)]
    assert ends[0] and ends[1] and ends[0].manifest.files == ends[1].manifest.files  # weights and random states alike


def test_a_rank_that_does_not_find_the_chosen_checkpoint_stops_all_by_name(run: tuple[Path, list[list[Any]]]) -> None:
    root, (first, second) = run
    assert first == second
    missing, other, incomplete = first
    folder = root / "lost/rank-1/checkpoints"
    sentence = f"rank 1 does not find the checkpoint of step 4 in {folder}, from which rank 0 continues: give an"
    for is_value_error, message in (missing, incomplete):
        assert not is_value_error and message.startswith(sentence)  # Ray may start the workers again
    assert other[0] and other[1].startswith(f"rank 1 finds another checkpoint of step 4 in {folder} than the one")


def test_a_checkpoint_of_another_training_is_refused_before_a_model_is_built(store: str, tmp_path: Path) -> None:
    job = job_in(tmp_path / "run", store, f"sqlite:///{tmp_path}/mlflow.db", "")
    CheckpointFolder(tmp_path / "run/checkpoints").save(1, lambda folder: None, LocalContext(), {"step": 1}, 1)
    with pytest.raises(ValueError, match=r"step-00000001 is no checkpoint of rtp train: give another --output"):
        Checkpointer(LocalContext(), job).choose()
