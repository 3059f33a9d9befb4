"""Batch and lanes divide evenly among every number of workers that a run may have, or the experiment is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.launch import RayLaunch
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment


def experiment(num_workers: int | tuple[int, int], **loop: int) -> Experiment:
    recipe = load_recipe("rt1_tiny")
    settings = {"global_batch": 24, "micro_batch": 2, "lanes": 48, "segment_windows": 1, **loop}
    return replace(recipe, launch=RayLaunch(num_workers=num_workers), loop=replace(recipe.loop, **settings))


@pytest.mark.parametrize(("num_workers", "micro_batches"), [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)])
def test_micro_batches_per_step_make_up_the_global_batch(num_workers: int, micro_batches: int) -> None:
    fitting = experiment(num_workers)
    fitting.require_sizes()
    assert fitting.accumulation(num_workers) == micro_batches


def test_a_number_of_workers_that_does_not_divide_the_batch_is_refused_with_the_equation() -> None:
    with pytest.raises(ValueError, match=r"loop\.micro_batch 2 x accumulation x 8 workers .*: choose a multiple of 16"):
        experiment(8).require_sizes()
    with pytest.raises(ValueError, match="x 16 workers has no whole solution"):  # more than there are micro-batches
        experiment(16).require_sizes()


def test_a_number_of_workers_that_does_not_divide_the_lanes_is_refused_with_the_equation() -> None:
    with pytest.raises(ValueError, match=r"loop\.lanes 48 = 5 workers x lanes of each has no whole solution"):
        experiment(5, global_batch=10).require_sizes()
    experiment(5, global_batch=10, lanes=45).require_sizes()


def test_every_size_of_an_elastic_run_must_divide() -> None:
    experiment((1, 4)).require_sizes()
    with pytest.raises(ValueError, match="x 5 workers has no whole solution"):
        experiment((1, 5)).require_sizes()


def test_a_micro_batch_holds_whole_segments() -> None:
    experiment(1, micro_batch=6, segment_windows=3).require_sizes()
    with pytest.raises(
        ValueError, match=r"loop\.micro_batch 4 is not a whole number of segments of loop\.segment_windows 3"
    ):
        experiment(1, micro_batch=4, segment_windows=3).require_sizes()
