"""`rtp doctor RECIPE --data STORE --fit`: the largest micro-batch that trains here, and the fastest, found by trying.

Every size is tried in a process of its own, so that one which runs out of memory leaves nothing behind. A size is not
tried if its estimate (estimate.py), corrected by the sizes measured so far, does not fit: on a CPU the system would
kill whatever it likes. A trial is one worker with plain PyTorch; what a worker of the run holds more is added to its
peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipelines.capacity.diagnosis import Check, size
from pipelines.config.experiment import Experiment

MARGIN = 0.92
"""Share of a device's memory that a run may hold at its peak; allocators need the rest."""
KEPT_IN_A_TRIAL = 0.2
"""What a CPU's allocator keeps by the end of a trial's few steps, of all that it comes to keep."""
_ESTIMATE_WITHIN = 0.1  # what the estimate may be off by before a size was measured
_OUT_OF_MEMORY = ("out of memory", "MemoryError", "can't allocate memory")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One size. `peak_bytes` and `samples_per_s` are those of one worker of the run; None if it did not train."""

    micro_batch: int
    fits: bool
    peak_bytes: int | None = None
    samples_per_s: float | None = None


def micro_batch_sizes(experiment: Experiment) -> list[int]:
    """Those that the recipe's global batch can be divided into, ascending."""
    workers = experiment.launch.sizes[-1]
    of_one = experiment.loop.global_batch // workers
    return [number for number in range(1, of_one + 1) if of_one % number == 0 and _divides(experiment, number)]


def _divides(experiment: Experiment, micro_batch: int) -> bool:
    try:
        replace(experiment, loop=replace(experiment.loop, micro_batch=micro_batch)).require_sizes()
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class SizeEstimate:
    """Bytes that one worker of the run is estimated to hold with a size, and the process that tries it."""

    run: int
    trial: int


def try_sizes(
    sizes: Sequence[int],
    first: int,
    room: int,
    run: Callable[[int], Trial],
    estimate: Callable[[int], SizeEstimate],
) -> list[Trial]:
    """From `first` on larger ones as long as they fit; if it does not fit, smaller ones until one does.

    sizes: ascending; room: bytes that a worker may hold. The trials in the order of their sizes.
    """
    trials: list[Trial] = []

    def attempt(number: int) -> Trial:
        share = MARGIN if trials else 1 + _ESTIMATE_WITHIN
        if _expected_peak(trials, number, estimate) > share * room:
            return Trial(micro_batch=number, fits=False)
        trial = run(number)
        if trial.peak_bytes is not None:
            estimated = estimate(number)
            trial = replace(trial, peak_bytes=trial.peak_bytes + estimated.run - estimated.trial)
        return replace(trial, fits=trial.fits and (trial.peak_bytes or 0) <= MARGIN * room)

    for number in (number for number in sizes if number >= first):
        trials.append(attempt(number))
        if not trials[-1].fits:
            break
    if not any(trial.fits for trial in trials):
        for number in reversed([number for number in sizes if number < first]):
            trials.insert(0, attempt(number))
            if trials[0].fits:
                break
    return trials


def _expected_peak(trials: Sequence[Trial], micro_batch: int, estimate: Callable[[int], SizeEstimate]) -> float:
    """The estimate, plus what the nearest size that trained held more than its own."""
    known = [trial for trial in trials if trial.peak_bytes is not None]
    if not known:
        return estimate(micro_batch).run
    near = min(known, key=lambda trial: abs(trial.micro_batch - micro_batch))
    return estimate(micro_batch).run + (near.peak_bytes or 0) - estimate(near.micro_batch).run


def run_in_process(arguments: Sequence[str], workers: int) -> Callable[[int], Trial]:
    """Measures a size by `rtp doctor ARGUMENTS --measure`, one micro-batch a step.

    The returned function raises ValueError with the reason if a size fails for another reason than its memory.
    """

    def run(micro_batch: int) -> Trial:
        print(f"trying micro-batch {micro_batch} ...", file=sys.stderr, flush=True)
        words = ["--loop.micro-batch", str(micro_batch), "--loop.global-batch", str(micro_batch * workers)]
        command = [sys.executable, "-m", "pipelines", "doctor", *arguments, *words, "--measure", "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        measured, reason = _outcome(ended)
        if measured is not None:
            peak, rate = measured
            return Trial(micro_batch=micro_batch, fits=True, peak_bytes=peak, samples_per_s=rate)
        if ended.returncode < 0 or any(sign in ended.stderr + reason for sign in _OUT_OF_MEMORY):
            return Trial(micro_batch=micro_batch, fits=False)
        raise ValueError(f"micro-batch {micro_batch} does not train: {reason}")

    return run


def _outcome(ended: subprocess.CompletedProcess[str]) -> tuple[tuple[int, float] | None, str]:
    """(peak bytes and samples per second, "") or (None, the reason)."""
    lines = ended.stdout.splitlines()
    try:
        summary = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        summary = {}
    if measured := summary.get("measured"):
        return (measured["peak_bytes"], measured["samples_per_s"]), ""
    reasons = [check["found"] for check in summary.get("checks", []) if check["name"] == "measured"]
    return None, " ".join([*reasons, *ended.stderr.strip().splitlines()[-1:]][:1])


def fit_check(trials: Sequence[Trial], room: int, current: int) -> Check:
    """What to read of it."""
    fitting = [trial for trial in trials if trial.fits]
    tried = "; ".join(_described(trial) for trial in trials)
    if not fitting:
        remedy = "use activation checkpointing, a smaller model, or more workers under ZeRO-3"
        return Check(name="fit", found=f"none of {tried} fits {size(room)}", verdict="fail", remedy=remedy)
    largest, fastest = fitting[-1], max(fitting, key=lambda trial: trial.samples_per_s or 0)
    text = f"micro-batch {largest.micro_batch} is the largest that fits {size(room)}, "
    text += f"{fastest.micro_batch} is the fastest ({tried})"
    better = fastest.micro_batch != current
    remedy = f"--loop.micro-batch {fastest.micro_batch} trains the same global batch faster" if better else ""
    return Check(name="fit", found=text, verdict="note" if better else "ok", remedy=remedy)


def _described(trial: Trial) -> str:
    if trial.peak_bytes is None or trial.samples_per_s is None:
        return f"{trial.micro_batch}: too large"
    return f"{trial.micro_batch}: {trial.samples_per_s:.1f} samples/s, {size(trial.peak_bytes)}"
