"""What a worker does with an error, among ranks that meet it too and ranks that do not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cluster.context import WorkerContext
from cluster.stop_file import StopFile
from pipelines import train_worker as worker
from pipelines.catalogue import load_recipe
from pipelines.training.job import TrainJob
from tests.support.ranks import run_ranks


def job_in(folder: Path) -> TrainJob:
    return TrainJob(experiment=load_recipe("rt1_tiny"), stores=(), output=str(folder), tracking_uri="")


def failing_together(context: WorkerContext, job: TrainJob) -> dict[str, Any]:
    context.barrier()  # both have come this far: a rank that finds the other's error at its start leaves at once
    raise ValueError("the flag is wrong")


def failing_alone(context: WorkerContext, job: TrainJob) -> dict[str, Any]:
    context.barrier()  # both train
    if context.rank == 0:
        raise ValueError("my frame is no picture")
    time.sleep(5)  # as in a collective that rank 0 never joins
    return {"loss": 1.0}


def all_cases(context: WorkerContext, folder: Path) -> list[Any]:
    outcomes = []
    context.barrier()  # processes start at different times
    for function, agree_s in ((failing_together, 60.0), (failing_alone, 1.0)):
        worker.train, worker._AGREE_S = function, agree_s
        config = {"job": job_in(folder / function.__name__)}
        for _ in range(2):  # the second time as a worker that was started again
            try:
                outcomes.append(worker.train_worker(context, config))
            except ValueError as error:
                outcomes.append(str(error))
            context.barrier()
    return outcomes


def test_an_error_of_all_is_left_quietly_and_an_error_of_one_is_raised_once(tmp_path: Path) -> None:
    first, second = run_ranks(all_cases, 2, tmp_path / "results", tmp_path)
    wrong, picture = ({"error": "ValueError", "message": m} for m in ("the flag is wrong", "my frame is no picture"))
    assert first == [wrong, wrong, "my frame is no picture", picture]
    assert second == [wrong, wrong, {"loss": 1.0}, picture]
    for name, words in (("failing_together", "the flag is wrong"), ("failing_alone", "my frame is no picture")):
        left = StopFile(str(tmp_path / name)).left()
        assert isinstance(left, ValueError) and str(left) == words
