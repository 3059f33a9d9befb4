"""What a second camera and the robot's state are worth: a small RT-1 on the shipped Meta-World episodes, minutes a run.

    python benchmarks/cameras_and_state.py FOLDER [--variants image wrist both state] [--seeds 0] [--steps 160]

Each variant is the recipe rt1_metaworld in one process, trained on the sample's train split and scored on its held-out
episodes: the main camera alone, the wrist camera alone, both, the main camera with the state, and the same with noise
and dropout on it. Accuracies are shares of right tokens with 95 % intervals over episodes; differences to the main
camera alone are paired step by step. Of a model that reads the state, `frozen` is the same model with the state of an
episode's first step at all of its steps: what it loses is how far it copies. Finished variants are not trained again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import parser, print_json, start

from cluster.engine import TorchEngineConfig
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment, InProcess
from pipelines.demo import shipped_episodes
from pipelines.evaluation.predictions import Predictions, predict_store
from pipelines.evaluation.scoring import as_acted, correct_share, scored_dimensions
from pipelines.evaluation.statistics import Bootstrap, Interval
from pipelines.families.models import family_of
from pipelines.publishing.trained_model import load_trained
from pipelines.train import run_training
from pipelines.training.job import TrainJob
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from rt_models.control.action import ActionOutlet
from rt_models.rt1 import RT1Config
from rt_models.spec import StateInput

VARIANTS: dict[str, dict[str, Any]] = {
    "image": {},
    "wrist": {"cameras": ("wrist",)},
    "both": {"cameras": ("image", "wrist")},
    "state": {"state": StateInput()},
    "state, noise and dropout": {"state": StateInput(noise=0.1, dropout=0.5)},
}


def main() -> None:
    made = parser(__doc__, rounds=None)
    made.add_argument("root", type=Path, help="folder for stores and runs")
    made.add_argument("--source", type=Path, default=shipped_episodes(), help="RLDS folder with a wrist camera")
    made.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    made.add_argument("--steps", type=int, default=160, help="optimizer steps (the recipe's: 160)")
    arguments = made.parse_args()
    start(arguments)
    stores = {split: store_of(arguments.root, arguments.source, split) for split in ("train", "val")}
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for name in arguments.variants:
        for seed in arguments.seeds:
            run = trained(arguments.root, stores, name, seed, arguments.steps)
            found.setdefault(name, {})[seed] = right_steps(run, stores["val"])
    print_json("cameras_and_state", arguments, reported(found))


def store_of(root: Path, source: Path, split: str) -> EpisodeStore:
    config = ConvertConfig(split=split, encoder="hash", cameras=("image", "wrist"), workers=0)
    return EpisodeStore.open(convert(str(source), str(root / "stores"), config).store)


def experiment_of(name: str, seed: int, steps: int) -> Experiment:
    base = load_recipe("rt1_metaworld")
    loop = replace(base.loop, steps=steps, seed=seed, checkpoint_every=steps, evaluate_every=0)
    assert isinstance(base.model, RT1Config)
    model = replace(base.model, **VARIANTS[name])
    return replace(base, model=model, loop=loop, launch=InProcess(), engine=TorchEngineConfig(clip_norm=1.0))


def trained(root: Path, stores: dict[str, EpisodeStore], name: str, seed: int, steps: int) -> Path:
    """The run, trained unless it is there."""
    run = root / f"runs-{steps}" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not (run / "checkpoints").exists():
        run_training(
            TrainJob(
                experiment=experiment_of(name, seed, steps),
                stores=(stores["train"].root,),
                validation=(),
                output=str(run),
                tracking_uri=f"sqlite:///{root}/mlflow.db",
            )
        )
    return run


def right_steps(run: Path, store: EpisodeStore) -> dict[str, np.ndarray]:
    """By perturbation the share of right tokens of each held-out step (N,), and the steps' episodes."""
    loaded = load_trained(str(run))
    model, contract, dataset = loaded.model, loaded.contract, loaded.contract.dataset(store.name)
    outlet = ActionOutlet(model.spec, dataset, family_of(model).answered_dims(model.config))

    def predicted(perturbation: Any) -> Predictions:
        return as_acted(predict_store(model, contract, store, batch=64, perturbation=perturbation), outlet)

    plain = predicted("none")
    dims = scored_dimensions(dataset, plain)
    found = {"episode": plain.episode_N, "as recorded": correct_share(plain.tokens_NA, plain, dims)}
    if contract.state:
        found["frozen"] = correct_share(predicted("frozen_state").tokens_NA, plain, dims)
    return found


def reported(found: dict[str, dict[int, dict[str, np.ndarray]]]) -> dict[str, Any]:
    """Accuracies with intervals over episodes, means over seeds; printed on the way."""
    results: dict[str, Any] = {}
    for name, by_seed in found.items():
        episode_N = next(iter(by_seed.values()))["episode"]
        interval = Bootstrap().over(episode_N)
        for kind in ("as recorded", "frozen"):
            if kind not in next(iter(by_seed.values())):
                continue
            right_N = np.mean([steps[kind] for steps in by_seed.values()], axis=0)
            row = {"accuracy": interval(right_N)}
            if kind == "frozen":
                row["less than as recorded"] = interval(mean_of(by_seed, "as recorded") - right_N)
            elif "image" in found and name != "image":
                row["more than image"] = interval(right_N - mean_of(found["image"], "as recorded"))
            label = name if kind == "as recorded" else f"{name}, frozen"
            results[label] = {key: vars(value) for key, value in row.items()}
            print(f"{label:<34}", "; ".join(f"{key} {said(value)}" for key, value in row.items()), flush=True)
    return json.loads(json.dumps(results))


def mean_of(by_seed: dict[int, dict[str, np.ndarray]], kind: str) -> np.ndarray:
    return np.mean([steps[kind] for steps in by_seed.values()], axis=0)


def said(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


if __name__ == "__main__":
    main()
