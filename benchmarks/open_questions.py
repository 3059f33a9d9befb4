"""Open questions about a small RT-1, answered by measurement: the same samples for every answer, several seeds.

    python benchmarks/open_questions.py QUESTION... --folder runs/questions [--data TRAIN --validation VAL]
        [--recipe rt1_metaworld] [--steps 160] [--seeds 0 1 2] [--env metaworld:mt6 --episodes 20] [--gpu]

Questions: loss (on all steps of a window, or on the last), previous-actions (action positions hold nothing, or the
actions before; both under the mask that lets them be seen), mask (as in the JAX or in the TensorFlow release), backbone
(EfficientNet, or a vision transformer with a convolutional stem of as many parameters), segments (single windows, or
neighbouring ones together: as many windows, drawn from fewer places), encoder (hash, which knows no meaning, or
use-multilingual; it converts --source twice).

Each answer is trained once a seed, on batches that hold the same number of windows, and scored on the held-out store:
token accuracy and scaled error, as `rtp evaluate` has them; with --env also by success. Shown are the mean over seeds
with a 95 % interval (Student's t over seeds), and the difference to the first answer, paired by seed. Finished
trainings are kept in the folder, and an answer to several questions is trained once. Without --data the shipped sample
is converted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import parser, print_json, start
from scipy import stats

from cluster.engine import TorchEngineConfig
from cluster.launch import RayLaunch
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment, InProcess
from pipelines.demo import shipped_episodes
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.scoring import evaluate
from pipelines.publishing.trained_model import load_trained
from pipelines.train import run_training
from pipelines.training.job import TrainJob
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from rt_models.rt1 import RT1Config
from rt_models.vision.vit import ViTConfig

SEGMENT = 8  # windows; must divide the micro-batch


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is changed in the experiment, and how the stores' instructions are encoded."""

    model: Mapping[str, Any]
    transformer: Mapping[str, Any]
    loop: Mapping[str, Any]
    encoder: str = "hash"

    def of(self, base: Experiment) -> Experiment:
        assert isinstance(base.model, RT1Config)
        transformer = replace(base.model.transformer, **self.transformer)
        model = replace(base.model, **{"transformer": transformer, **self.model})
        return replace(base, model=model, loop=replace(base.loop, **self.loop))


def answer(*, encoder: str = "hash", mask: str | None = None, segment: int | None = None, **model: Any) -> Answer:
    return Answer(
        model=model,
        transformer={} if mask is None else {"mask": mask},
        loop={} if segment is None else {"segment_windows": segment},
        encoder=encoder,
    )


VIT = ViTConfig(patch_size=8, width=96, num_layers=4, num_heads=4, hidden=192, stem="convolutions")
TOGETHER = f"{SEGMENT} windows together"
ANSWERS: dict[str, Answer] = {
    "recipe": answer(),
    "loss on the last step": answer(loss_on="last"),
    "mask tf": answer(mask="tf"),
    "mask tf, actions one-hot": answer(mask="tf", previous_actions="one_hot"),
    "ViT": answer(backbone=VIT),
    TOGETHER: answer(segment=SEGMENT),
    "use-multilingual": answer(encoder="use-multilingual"),
}
QUESTIONS: dict[str, tuple[str, str]] = {
    "loss": ("recipe", "loss on the last step"),
    "previous-actions": ("mask tf", "mask tf, actions one-hot"),
    "mask": ("recipe", "mask tf"),
    "backbone": ("recipe", "ViT"),
    "segments": ("recipe", TOGETHER),
    "encoder": ("recipe", "use-multilingual"),
}


def main() -> None:
    made = parser(__doc__, rounds=None)
    made.add_argument("questions", nargs="+", choices=list(QUESTIONS))
    made.add_argument("--folder", type=Path, required=True, help="for stores and runs")
    made.add_argument("--source", type=Path, default=shipped_episodes(), help="RLDS folder to convert")
    made.add_argument("--data", help="store to train on, instead of converting --source")
    made.add_argument("--validation", help="held-out store, with --data")
    made.add_argument("--recipe", default="rt1_metaworld", help="of an RT-1 (default: rt1_metaworld)")
    made.add_argument("--tiny", action="store_true", help="RT1Config.tiny() in place of the recipe's model")
    made.add_argument("--steps", type=int, default=160, help="optimizer steps (default: 160)")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--env", help="also act, such as metaworld:mt6")
    made.add_argument("--episodes", type=int, default=20, help="of each task of --env")
    made.add_argument("--gpu", action="store_true", help="train on a GPU under Ray, in bf16")
    given = made.parse_args()
    start(given)
    if (given.data is None) != (given.validation is None):
        raise SystemExit("--data and --validation belong together")
    results = {question: asked(given, question) for question in given.questions}
    print_json("open_questions", given, results)


def asked(given: Any, question: str) -> dict[str, Any]:
    """By answer the scores over seeds; printed on the way."""
    first, _ = QUESTIONS[question]
    scores = {name: [scored(given, name, seed) for seed in given.seeds] for name in QUESTIONS[question]}
    found: dict[str, Any] = {}
    for name, of_seeds in scores.items():
        found[name] = {metric: over_seeds([each[metric] for each in of_seeds]) for metric in of_seeds[0]}
        if name != first:
            pairs = zip(of_seeds, scores[first], strict=True)
            differences = [{metric: mine[metric] - theirs[metric] for metric in mine} for mine, theirs in pairs]
            more = {f"{m}, more than {first}": over_seeds([each[m] for each in differences]) for m in differences[0]}
            found[name] |= more
        shown = "; ".join(
            f"{metric} {mean:.4f} [{low:.4f}, {high:.4f}]" for metric, (mean, low, high) in found[name].items()
        )
        print(f"{question}, {name}: {shown}", flush=True)
    return found


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): a 95 % interval of Student's t over seeds; of one seed without width."""
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return mean, mean - half, mean + half


def scored(given: Any, name: str, seed: int) -> dict[str, float]:
    """Of one training, which is made unless its scores are there."""
    run = given.folder / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
    kept = run / "scores.json"
    if not kept.exists():
        chosen = ANSWERS[name]
        train, val = (store_of(given, chosen.encoder, split) for split in ("train", "val"))
        uri = f"sqlite:///{given.folder}/mlflow.db"
        experiment = experiment_of(given, chosen, seed)
        run_training(
            TrainJob(
                experiment=experiment, stores=(train.root,), output=str(run), tracking_uri=uri, resume=run.exists()
            )
        )
        kept.write_text(json.dumps(measured(given, run, val)))
    return json.loads(kept.read_text())


def store_of(given: Any, encoder: str, split: str) -> EpisodeStore:
    if given.data is not None:
        return EpisodeStore.open(given.data if split == "train" else given.validation)
    config = ConvertConfig(split=split, encoder=encoder, workers=0)
    return EpisodeStore.open(convert(str(given.source), str(given.folder / "stores" / encoder), config).store)


def experiment_of(given: Any, chosen: Answer, seed: int) -> Experiment:
    base = load_recipe(given.recipe)
    if given.tiny:
        base = replace(base, model=RT1Config.tiny())
    launch = RayLaunch(num_workers=1, use_gpu=True) if given.gpu else InProcess()
    engine = TorchEngineConfig(clip_norm=1.0, precision="bf16" if given.gpu else "fp32")
    loop = replace(base.loop, steps=given.steps, seed=seed, checkpoint_every=given.steps, evaluate_every=0)
    return chosen.of(replace(base, launch=launch, engine=engine, loop=loop))


def measured(given: Any, run: Path, val: EpisodeStore) -> dict[str, float]:
    loaded = load_trained(str(run))
    config = EvaluationConfig(perturbations=False, bootstrap_samples=10)
    report = evaluate(loaded.model, loaded.contract, val, config)
    found = {"token accuracy": report.token_accuracy.mean, "scaled error": report.scaled_error.mean}
    if given.env is not None:
        from pipelines.sweeps.simulated import SimulatedScore

        found |= SimulatedScore(env=given.env, episodes=given.episodes).of(str(run))
    return found


if __name__ == "__main__":
    main()
