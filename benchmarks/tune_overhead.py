"""What `rtp tune` costs beside plain Ray Tune with the same trainable, both as commands from their start to their end.

The plain side is what one would write with Ray's documentation: ray.init, tune.Tuner with its random search, fit. Its
trainable is the very training that our trials run, with its own MLflow run. Ours writes, beside that, a record of every
trial, the parent run, the report and best.yaml. A sweep of one trial is start-up; the difference between a sweep of
several and of one, per trial, is the cost of a trial.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
from tune_asha import finish, start, store_flags


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--trials", type=measure.positive, default=5, help="of the longer sweep (default: 5)")
    parser.add_argument("--steps", type=measure.positive, default=12, help="optimizer steps of a trial (default: 12)")
    parser.add_argument("--plain", nargs=4, metavar=("TRAIN", "VAL", "OUTPUT", "TRIALS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        train, val, output, trials = arguments.plain
        plain_ray_tune(train, val, output, int(trials), arguments.steps)
        return
    measure.start(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        results = compare(arguments, Path(scratch))
    measure.print_json("tune_overhead", arguments, results)


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    flags, count, number = store_flags(folder), arguments.trials, iter(range(10**6))
    common = [*flags, "--scheduler", "ToTheEnd", "--concurrency", "1", "--loop.steps", str(arguments.steps)]

    def ours(trials: int) -> None:
        finish(start(folder / f"ours-{next(number)}", [*common, "--budget.trials", str(trials)]))

    def plain(trials: int) -> None:
        output = folder / f"plain-{next(number)}"
        words = [flags[1], flags[3], output, trials]
        command = [sys.executable, __file__, "--steps", str(arguments.steps), "--plain", *map(str, words)]
        root = str(Path(__file__).resolve().parents[1])
        database = f"sqlite:///{folder}/mlflow.db"
        environment = {**os.environ, "PYTHONPATH": root, "MLFLOW_TRACKING_URI": database}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"plain Ray Tune ended with {done.returncode}: {done.stderr}")

    sides = {
        "ours, 1 trial": lambda: ours(1),
        "plain, 1 trial": lambda: plain(1),
        f"ours, {count} trials": lambda: ours(count),
        f"plain, {count} trials": lambda: plain(count),
    }
    seconds = measure.in_turn(sides, arguments.rounds)
    one, plain_one, several, plain_several = seconds.values()
    pairs = ((one, several), (plain_one, plain_several))
    each = [[(long - short) / (count - 1) for short, long in zip(*pair, strict=True)] for pair in pairs]
    ratios = {
        "start-up (sweep of one trial)": measure.ratio(one, plain_one),
        f"sweep of {count} trials": measure.ratio(several, plain_several),
        "each further trial": measure.ratio(*each),
    }
    seconds |= {"ours, each further trial": each[0], "plain, each further trial": each[1]}
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values):.1f} s")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio}")
    return {name: ratio.to_json() for name, ratio in ratios.items()}


def plain_ray_tune(train: str, val: str, output: str, trials: int, steps: int) -> None:
    """The other side."""
    import ray
    from ray import tune
    from tune_sweep import sweep

    from pipelines.catalogue import load_recipe
    from pipelines.sweeps.trials import TrainingTrial, with_parameters
    from pipelines.tracking.mlflow_run import tracking_uri
    from pipelines.train import run_training
    from pipelines.training.job import TrainJob
    from tuning.tuner import TrialTask

    experiment = with_parameters(load_recipe(sweep().recipe), {**sweep().settings, "loop.steps": steps})
    job = TrainJob(
        experiment=experiment, stores=(train,), validation=(val,), output=output, tracking_uri=tracking_uri()
    )
    trial = TrainingTrial(job=job, run=run_training, tags={})

    def trainable(config: dict[str, float]) -> None:
        folder = f"{output}/{tune.get_context().get_trial_id()}"
        task = TrialTask(number=0, seed=0, parameters=config, output=folder)
        trial(task, lambda metrics: tune.report(dict(metrics)))

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home folder
    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, object_store_memory=300 * 10**6)
    tune.Tuner(
        trainable,
        param_space={"optimizer.lr": tune.loguniform(1e-5, 3e-1)},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=output, verbose=0),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
