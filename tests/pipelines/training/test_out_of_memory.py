"""A GPU whose memory runs out ends a training with what to do about it."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
import torch

from cluster.context import LocalContext
from pipelines import train_loop
from pipelines.training.job import PreparedJob


def test_the_memory_of_a_gpu_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setattr(train_loop, "_open_loop", full)
    job = MagicMock(spec=PreparedJob, experiment=MagicMock())
    job.experiment.loop.micro_batch = 96
    with pytest.raises(ValueError, match=r"96 samples a micro-batch: give a smaller --loop.micro-batch.*2.00 GiB\.$"):
        train_loop.train(LocalContext("cpu"), job)
