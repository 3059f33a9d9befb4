"""`rtp demo`: the whole path on the shipped episodes: store, training, evaluation, registered model, prediction.

Exits with 1 unless the trained policy beats the lazy policies on held-out episodes, with the 95 % interval of the
margin above zero, and gets worse without its images and with other instructions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.arguments import parse
from pipelines.catalogue import load_recipe
from pipelines.checkpoints import load_trained
from pipelines.evaluate import EvaluationConfig, evaluate, print_tables
from pipelines.preprocess import PreprocessConfig, preprocess
from pipelines.register import Guard, register
from pipelines.run_report import run_page, write_page
from pipelines.serve import load_registered
from pipelines.tracking import tracking_uri
from pipelines.train import run_training
from pipelines.train_loop import TrainJob, read_metrics
from preprocessing.episode_store import EpisodeStore
from preprocessing.report import film_strips

RECIPE = "rt1_metaworld"
MODEL_NAME = "rt1-demo"
_SAMPLE = Path(__file__).resolve().parents[1] / "examples/metaworld_sample/1.0.0"


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Flags of `rtp demo`."""

    output: str = "runs/demo"
    """Folder for stores, checkpoints and the report; running again continues there."""
    source: str = str(_SAMPLE)
    """The shipped RLDS episodes; they come with the source checkout."""
    steps: int | None = None
    """Optimizer steps instead of the recipe's."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Run every stage and print the closing summary."""
    given = parse(DemoArguments, arguments, prog="rtp demo", description=__doc__ or "")
    stages = _Stages(Path(given.output).absolute())
    stores = stages.preprocess(given.source)
    trained_at = stages.train(stores, given.steps)
    report = stages.evaluate(trained_at, stores["val"])
    registered = stages.register(trained_at, stores["val"])
    action = stages.predict(registered["model_uri"], stores["val"])
    page = stages.report(stores, report, registered)
    return stages.summary(stores, report, registered, action, page)


@dataclass
class _Stages:
    """The stages in order; each says what it does before it does it."""

    output: Path
    console: Console = field(default_factory=Console)
    began: float = field(default_factory=time.monotonic)

    def preprocess(self, source: str) -> dict[str, EpisodeStore]:
        self._say("preprocess", "RLDS episodes to an episode store (hash encoder: deterministic, offline, not USE)")
        stores = {}
        for split in ("train", "val"):
            config = PreprocessConfig(split=split, encoder="hash")
            stores[split] = EpisodeStore.open(preprocess(source, str(self.output / "store"), config)["store"])
        return stores

    def train(self, stores: dict[str, EpisodeStore], steps: int | None) -> str:
        experiment = load_recipe(RECIPE)
        if steps is not None:
            experiment = replace(experiment, loop=replace(experiment.loop, steps=steps))
        workers = experiment.launch.most
        self._say("train", f"{RECIPE}: {experiment.loop.steps} steps on {workers} Ray workers with DeepSpeed ZeRO-1")
        job = TrainJob(
            experiment=experiment,
            stores=(stores["train"].root,),
            validation=(stores["val"].root,),
            output=str(self.output / "train"),
            tracking_uri=tracking_uri(),
            resume=(self.output / "train").exists(),
        )
        run_training(job)
        return job.output

    def evaluate(self, trained_at: str, store: EpisodeStore) -> dict[str, Any]:
        self._say("evaluate", "on held-out episodes, beside three lazy policies")
        trained = load_trained(trained_at)
        report = evaluate(trained.model, trained.contract, store, EvaluationConfig())
        print_tables(report)
        return report

    def register(self, trained_at: str, store: EpisodeStore) -> dict[str, Any]:
        self._say("register", f"as {MODEL_NAME} in the MLflow registry, @champion unless an earlier one is better")
        guard = Guard.of("champion", (), (store.root,))
        registered = register(trained_at, name=MODEL_NAME, alias="champion", guard=guard)
        for reason in registered["gates"]:
            self.console.print(f"  {reason}")
        return registered

    def predict(self, model_uri: str, store: EpisodeStore) -> dict[str, float]:
        self._say("predict", f"load {model_uri} back and ask it for an action")
        row = store.read_rows(0, 0, ["image", "instruction"]).slice(0, 1).to_pylist()[0]
        text = store.instruction_texts[list(store.instruction_ids).index(row["instruction"])]
        action = load_registered(model_uri)([row["image"]], [text])[0]
        self.console.print(f"  {text!r} -> " + ", ".join(f"{name} {value:+.4f}" for name, value in action.items()))
        return action

    def report(self, stores: dict[str, EpisodeStore], report: dict[str, Any], registered: dict[str, Any]) -> Path:
        facts = {
            "episodes": f"{_episodes(stores['train'])} train, {_episodes(stores['val'])} held out",
            "model": registered["model_uri"],
            "MLflow": registered["tracking_uri"],
            "contract": report["contract"],
        }
        metrics = read_metrics(self.output / "train/metrics.jsonl")
        page = run_page("RT-1 on Meta-World episodes", facts, metrics, report, film_strips(stores["val"], limit=8))
        write_page(self.output / "report.html", page)
        return self.output / "report.html"

    def summary(
        self,
        stores: dict[str, EpisodeStore],
        report: dict[str, Any],
        registered: dict[str, Any],
        action: dict[str, float],
        page: Path,
    ) -> dict[str, Any]:
        losses = [line["loss"] for line in read_metrics(self.output / "train/metrics.jsonl") if "loss" in line]
        failures = shortfalls(report)
        say = self.console.print
        say(f"\nread     {_episodes(stores['train'])} + {_episodes(stores['val'])} episodes, {_steps(stores)} steps")
        say(f"loss     {losses[0]:.3f} first, {losses[-1]:.3f} last")
        lazy = ", ".join(f"{name.replace('_', ' ')} {s['mean']:.3f}" for name, s in report["lazy"].items())
        say(f"accuracy {report['token_accuracy']['mean']:.3f} on held-out episodes; {lazy}")
        say(f"model    {registered['model_uri']}")
        say(f"MLflow   mlflow ui --backend-store-uri {registered['tracking_uri']}")
        say(f"report   {page}")
        say(f"took     {time.monotonic() - self.began:.0f} s")
        for failure in failures:
            say(f"[bold red]not shown: {failure}")
        return {
            "evaluation": report,
            "registered": registered,
            "action": action,
            "report": str(page),
            "shortfalls": failures,
            "exit_code": 1 if failures else 0,
        }

    def _say(self, stage: str, what: str) -> None:
        self.console.print(f"[bold]{stage:<10}[/bold] {what}")


def shortfalls(report: dict[str, Any]) -> list[str]:
    """What the evaluation should have shown and did not, in words."""
    missing = [
        f"the policy beats {name.replace('_', ' ')} (margin {margin['mean']:+.3f}, from {margin['low']:+.3f})"
        for name, margin in report["margin"].items()
        if margin["low"] <= 0
    ]
    missing += [
        f"accuracy falls with {name.replace('_', ' ')} (fall {scores['fall']['mean']:+.3f})"
        for name, scores in report["perturbed"].items()
        if scores["fall"]["low"] <= 0
    ]
    return missing


def _episodes(store: EpisodeStore) -> int:
    return sum(len(shard.episode_lengths) for shard in store.shards)


def _steps(stores: dict[str, EpisodeStore]) -> int:
    return sum(shard.rows for store in stores.values() for shard in store.shards)
