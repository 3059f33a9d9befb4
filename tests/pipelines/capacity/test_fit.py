"""`rtp doctor --fit`: which sizes are tried, which fit, and what is said of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.capacity.fit import MARGIN, SizeEstimate, Trial, fit_check, micro_batch_sizes, run_in_process, try_sizes
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment

SIZES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]


def device(fixed: int, each: int, *, out_of_memory: int | None = None) -> tuple[list[int], Callable[[int], Trial]]:
    """(the sizes that were run, a run that holds `fixed` and `each` bytes a sample)."""
    ran: list[int] = []

    def run(micro_batch: int) -> Trial:
        ran.append(micro_batch)
        peak = fixed + each * micro_batch
        if out_of_memory is not None and peak > out_of_memory:
            return Trial(micro_batch=micro_batch, fits=False)
        return Trial(micro_batch=micro_batch, fits=True, peak_bytes=peak, samples_per_s=float(micro_batch))

    return ran, run


def exact(number: int) -> SizeEstimate:
    """Of a device that holds 100 and 10 bytes a sample."""
    return SizeEstimate(run=100 + 10 * number, trial=100 + 10 * number)


def test_what_would_go_beyond_the_memory_is_not_tried() -> None:
    ran, run = device(100, 10)
    trials = try_sizes(SIZES, 4, 200, run, exact)
    assert ran == [4, 6, 8] and [trial.fits for trial in trials] == [True, True, True, False]
    assert trials[-1] == Trial(micro_batch=12, fits=False)


@given(
    fixed=st.integers(0, 500),
    each=st.integers(1, 100),
    room=st.integers(20, 2000),  # estimates are whole numbers, and off by less than one more
    first=st.sampled_from(SIZES),
    off=st.one_of(st.just(1.0), st.floats(0.91, 1.09)),
    more=st.integers(0, 300),
)
def test_the_largest_that_fits_is_found_and_estimates_spare_trials(
    fixed: int, each: int, room: int, first: int, off: float, more: int
) -> None:
    """The run holds `more` than what is tried, and the estimate is off by less than a tenth."""
    ran, run = device(fixed, each, out_of_memory=room)

    def estimate(number: int) -> SizeEstimate:
        of_run = int(off * (fixed + each * number + more))
        return SizeEstimate(run=of_run, trial=of_run - more)

    trials = try_sizes(SIZES, first, room, run, estimate)
    fitting = [number for number in SIZES if fixed + each * number + more <= MARGIN * room]
    found = [trial.micro_batch for trial in trials if trial.fits]
    tried = [trial.micro_batch for trial in trials]
    assert tried == sorted(set(tried)) and len(ran) == len(set(ran))
    assert set(found) <= set(fitting) and (found[-1:] == fitting[-1:] or off != 1)
    assert all(fixed + each * number + more <= 1.3 * room for number in ran)


def test_a_first_size_that_cannot_fit_is_not_tried() -> None:
    ran, run = device(100, 10)
    trials = try_sizes(SIZES, 48, 200, run, exact)
    assert ran == [8] and [trial.micro_batch for trial in trials if trial.fits] == [8]


def recipe(global_batch: int, micro_batch: int, segment: int = 1) -> Experiment:
    made = load_recipe("rt1_metaworld")
    loop = replace(made.loop, global_batch=global_batch, micro_batch=micro_batch, segment_windows=segment)
    return replace(made, loop=loop, launch=replace(made.launch, num_workers=2))  # type: ignore[arg-type]


def test_only_sizes_that_the_global_batch_can_be_made_of() -> None:
    assert micro_batch_sizes(recipe(48, 8)) == [1, 2, 3, 4, 6, 8, 12, 24]
    assert micro_batch_sizes(recipe(48, 8, segment=4)) == [4, 8, 12, 24]


def test_a_faster_size_is_recommended() -> None:
    trials = [
        Trial(micro_batch=8, fits=True, peak_bytes=10**9, samples_per_s=30.0),
        Trial(micro_batch=16, fits=True, peak_bytes=2 * 10**9, samples_per_s=40.0),
        Trial(micro_batch=32, fits=True, peak_bytes=4 * 10**9, samples_per_s=38.0),
        Trial(micro_batch=64, fits=False),
    ]
    check = fit_check(trials, 5 * 10**9, 8)
    assert check.verdict == "note" and "--loop.micro-batch 16" in check.remedy
    assert "micro-batch 32 is the largest that fits 5.0 GB, 16 is the fastest" in check.found
    assert "64: too large" in check.found and fit_check(trials, 5 * 10**9, 16).verdict == "ok"
    assert fit_check(trials[-1:], 5 * 10**9, 16).verdict == "fail"


@pytest.mark.parametrize(
    ("program", "fits", "reason"),
    [
        ("import sys; sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB')", False, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", False, ""),
        ("import sys; sys.exit('the disk is full')", None, "micro-batch 4 does not train: the disk is full"),
    ],
)
def test_only_memory_makes_a_size_too_large(
    program: str, fits: bool | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_really = subprocess.run
    monkeypatch.setattr(
        "pipelines.capacity.fit.subprocess.run",
        lambda command, **settings: run_really([sys.executable, "-c", program], **settings),
    )
    run = run_in_process(["rt1_metaworld"], 1)
    if fits is None:
        with pytest.raises(ValueError, match=reason):
            run(4)
    else:
        assert run(4) == Trial(micro_batch=4, fits=fits)
