"""Shards as tasks of Ray Data."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import ray

from preprocessing.conversion.run_shards import convert_shards
from preprocessing.conversion.shard_report import ShardCounts
from preprocessing.filtering.filter_config import FilterConfig
from preprocessing.masks.mask_store import MaskConfig


def _with_one_gpu() -> None:
    """A Ray that counts a GPU, whether there is one or not."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)


def test_workers_with_a_model_take_their_share_of_a_gpu_and_stay(tmp_path: Path) -> None:
    def write_gpus(folder: Path, index: int) -> ShardCounts:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        (folder / str(index)).write_text(f"{ray.get_gpu_ids()} {seen} {os.getpid()}")
        return ShardCounts(episodes=1, rows=1)

    try:
        for share, gpus in ((0.25, "[0] 0"), (0.0, "[] ")):
            folder = tmp_path / str(share)
            folder.mkdir()
            write = partial(write_gpus, folder)
            convert_shards(write, list(range(4)), total=4, workers=1, gpu_share=share, reach_ray=_with_one_gpu)
            found = {(folder / str(index)).read_text() for index in range(4)}
            assert {line.rpartition(" ")[0] for line in found} == {gpus}
            assert len(found) == 1 or not share  # one process, which loads its model once
    finally:
        ray.shutdown()


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--gpu-share must be between 0 and 1, got 1.5"):
        FilterConfig(scorer="clip:model", gpu_share=1.5)
    with pytest.raises(ValueError, match=r"--gpu-share must be between 0 and 1, got -1"):
        MaskConfig(detector="owlvit:model", gpu_share=-1)
