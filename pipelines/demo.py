"""`rtp demo`: the whole path on the shipped episodes: store, training, evaluation, registered model, prediction.

Exits with 1 unless the trained policy beats the baselines on held-out episodes, with the 95 % interval of the margin
above zero, gets worse without its images and with other instructions, and follows paraphrases that it has never seen.
Where Meta-World is installed (extra `sim`) and something draws, the policy then acts in it. How often it succeeds is
shown and decides nothing: this training is short, and docs/closed_loop.md has one that acts.
--compare trains a second policy on vectors of the `hash` encoder, which knows words but no meanings.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import distributions
from pathlib import Path

from rich.console import Console

from cluster.engine import TorchEngineConfig
from cluster.launch import RayLaunch
from pipelines.catalogue import load_recipe
from pipelines.config.arguments import parse, require_local
from pipelines.config.experiment import Experiment, InProcess
from pipelines.config.output_paths import output_folder
from pipelines.evaluation.closed_loop_config import ClosedLoopConfig
from pipelines.evaluation.closed_loop_report import POLICY, ClosedLoopReport
from pipelines.evaluation.closed_loop_setup import prepare
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.paraphrases import PARAPHRASES, ParaphraseScores, paraphrase_rows, score_paraphrases
from pipelines.evaluation.report import EpisodeReport
from pipelines.evaluation.scoring import Evaluation, evaluation_of
from pipelines.evaluation.store_evaluations import passes, pictures
from pipelines.evaluation.tables import print_tables
from pipelines.preprocess import PreprocessConfig, preprocess
from pipelines.publishing.registered import Prediction, load_registered
from pipelines.publishing.registration import PromotionPolicy, Registration, register
from pipelines.publishing.trained_model import load_trained
from pipelines.reports.html_page import heading
from pipelines.reports.rollout_page import chosen_videos, rollout_section
from pipelines.reports.run_page import percent, run_page
from pipelines.terminal.atomic_files import write_whole
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.progress_bar import counting
from pipelines.tracking.mlflow_run import tracking_uri
from pipelines.train import run_training
from pipelines.training.job import TrainJob
from pipelines.training.run_files import read_metrics
from preprocessing.store.episode_store import EpisodeStore

RECIPE = "rt1_metaworld"
MODEL_NAME = "rt1-demo"
_LEAST_RATIO = 0.9  # accuracy on paraphrases over accuracy on the instructions themselves
_ACTED = "metaworld:faucet-open,faucet-close,drawer-open,drawer-close,button-press"
_SAMPLE = "examples/metaworld_sample/1.0.0"


def shipped_episodes() -> Path:
    """The sample's version folder: in the source checkout, else the one in the record of the installed wheel."""
    checkout = Path(__file__).resolve().parents[1] / _SAMPLE
    if not checkout.exists():
        for installed in distributions(name="rt-pipelines"):
            for file in installed.files or ():
                if file.match(f"{_SAMPLE}/features.json"):
                    return Path(str(file.locate())).resolve().parent
    return checkout


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Flags of `rtp demo`."""

    output: str = "runs/demo"
    """Folder for stores, checkpoints and the report; running again continues there."""
    source: str = str(shipped_episodes())
    """The shipped RLDS episodes; they come with the source checkout and with the wheel."""
    steps: int | None = None
    """Optimizer steps instead of the recipe's."""
    rollouts: int = 2
    """Episodes of each of five tasks that the policy acts in at the end, where Meta-World is installed; 0 for none."""
    compare: bool = False
    """Train once more on vectors of the encoder hash and compare the encoders; that nearly doubles the time."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")
        if self.rollouts < 0:
            raise ValueError(f"--rollouts must be 0 or more, got {self.rollouts}")


def main(arguments: list[str]) -> JsonSummary:
    """Run every stage and print the closing summary."""
    flags = parse(DemoArguments, arguments, prog="rtp demo", description=__doc__ or "")
    stages = _Stages(Path(output_folder(require_local(flags.output, "--output"))))
    with _one_ray():
        stores = stages.preprocess(flags.source)
        trained_at = stages.train(stores, flags.steps)
    evaluation = stages.evaluate(trained_at, stores["val"])
    words = stages.paraphrase(trained_at, flags, stores["val"])
    registered = stages.register(trained_at, stores["val"])
    action = stages.predict(registered.model_uri, stores["val"])
    acted = stages.act(trained_at, flags.rollouts)
    page = stages.report(stores, evaluation, words, registered, acted)
    assert isinstance(evaluation.report, EpisodeReport)
    return stages.summary(stores, evaluation.report, words, registered, action, acted, page)


@dataclass
class _Stages:
    """The stages in order; each prints its purpose before it starts."""

    output: Path
    console: Console = field(default_factory=Console)
    began: float = field(default_factory=time.monotonic)

    def preprocess(self, source: str) -> dict[str, EpisodeStore]:
        self._say("preprocess", "RLDS episodes to an episode store, instructions by the encoder use-multilingual")
        return self._stores(source, "store", encoder="use-multilingual")

    def _stores(self, source: str, folder: str, *, encoder: str) -> dict[str, EpisodeStore]:
        stores = {}
        for split in ("train", "val"):
            config = PreprocessConfig(split=split, encoder=encoder)
            stores[split] = EpisodeStore.open(preprocess(source, str(self.output / folder), config).store)
        return stores

    def train(self, stores: dict[str, EpisodeStore], steps: int | None) -> str:
        experiment = _experiment(steps)
        workers = experiment.launch.most
        self._say("train", f"{RECIPE}: {experiment.loop.steps} steps on {workers} Ray workers with DeepSpeed ZeRO-1")
        return self._train(experiment, stores, "train")

    def _train(self, experiment: Experiment, stores: dict[str, EpisodeStore], folder: str) -> str:
        job = TrainJob(
            experiment=experiment,
            stores=(stores["train"].root,),
            validation=(stores["val"].root,),
            output=str(self.output / folder),
            tracking_uri=tracking_uri(),
            resume=(self.output / folder).exists(),
        )
        result = run_training(job)
        if result.stopped is not None:  # Ctrl-C or SIGTERM: a checkpoint is left, and half a training is not judged
            raise KeyboardInterrupt(result.stopped)
        return job.output

    def evaluate(self, trained_at: str, store: EpisodeStore) -> Evaluation:
        self._say("evaluate", "on held-out episodes, beside three baselines")
        trained = load_trained(trained_at)
        config = EvaluationConfig()
        with counting("evaluate", passes(store, config, trained)) as counted:
            evaluation = evaluation_of(trained.model, trained.contract, store, config, counted)
        print_tables(evaluation.report)
        return evaluation

    def paraphrase(
        self, trained_at: str, flags: DemoArguments, store: EpisodeStore
    ) -> dict[str, ParaphraseScores] | None:
        """Scores by encoder; None if an instruction of the episodes has no paraphrases."""
        if not set(store.instruction_texts) <= set(PARAPHRASES):
            return None
        self._say("paraphrase", "the same held-out steps with instructions in words that were never trained on")
        words = {"use-multilingual": score_paraphrases(load_trained(trained_at), store, EvaluationConfig())}
        if flags.compare:
            self._say("compare", "the same training on vectors of the encoder hash")
            stores = self._stores(flags.source, "store-hash", encoder="hash")
            compared = self._train(_in_process(_experiment(flags.steps)), stores, "train-hash")
            words["hash"] = score_paraphrases(load_trained(compared), stores["val"], EvaluationConfig())
        for encoder, scores in words.items():
            self.console.print(f"  {encoder:16} {scores}", highlight=False)
        return words

    def register(self, trained_at: str, store: EpisodeStore) -> Registration:
        self._say("register", f"as {MODEL_NAME} in the MLflow registry, @champion unless an earlier one is better")
        guard = PromotionPolicy.of("champion", (), (store.root,))
        registered = register(trained_at, name=MODEL_NAME, alias="champion", guard=guard)
        for reason in registered.gates:
            self.console.print(f"  {reason}", markup=False)
        return registered

    def predict(self, model_uri: str, store: EpisodeStore) -> Prediction:
        self._say("predict", f"load {model_uri} back and ask it for an action")
        row = store.read_rows(0, 0, ["image", "instruction"]).slice(0, 1).to_pylist()[0]
        text = store.instruction_texts[list(store.instruction_ids).index(row["instruction"])]
        action = load_registered(model_uri)([row["image"]], [text])[0]
        there = [name for name in store.contract.action.names if name not in action["absent"]]
        self.console.print(f"  {text!r} -> " + ", ".join(f"{name} {action[name]:+.4f}" for name in there))
        return action

    def act(self, trained_at: str, episodes: int) -> ClosedLoopReport | None:
        """The policy in the simulator, beside one demonstration replayed blindly; None where nothing simulates."""
        if episodes == 0:
            return None
        self._say(
            "act", f"in Meta-World, {episodes} episodes of each of five tasks, under seeds that nobody demonstrated"
        )
        config = ClosedLoopConfig(
            env=_ACTED,
            baselines=("replay",),
            video=self.output / "videos",
            view="side",  # and the quality, as the shipped episodes were drawn, whose store does not say so
            jpeg_quality=85,
        )
        try:
            report = prepare(trained_at, config, episodes=episodes, seed=0).run(EvaluationConfig().bootstrap())
        except (ImportError, OSError) as error:  # no simulator, or nothing that draws
            self.console.print(f"  left out: {error}", highlight=False, markup=False)
            return None
        for name, actor in report.actors.items():
            self.console.print(f"  {name:10} {percent(actor.rate)}", highlight=False)
        return report

    def report(
        self,
        stores: dict[str, EpisodeStore],
        evaluation: Evaluation,
        words: dict[str, ParaphraseScores] | None,
        registered: Registration,
        acted: ClosedLoopReport | None,
    ) -> Path:
        facts = {
            "episodes": f"{stores['train'].num_episodes} train, {stores['val'].num_episodes} held out",
            "model": registered.model_uri,
            "MLflow": registered.tracking_uri,
            "contract": evaluation.report.contract,
        }
        metrics = read_metrics(self.output / "train/metrics.jsonl")
        more = {"Instructions in other words": paraphrase_rows(words)} if words else {}
        drawn = pictures(evaluation, stores["val"], limit=8)
        if acted is not None:
            videos = chosen_videos(acted.actors[POLICY].results, self.output / "videos")
            drawn += heading("In the simulator") + rollout_section(acted, videos)
        page = run_page("RT-1 on Meta-World episodes", facts, metrics, evaluation.report, drawn, more)
        write_whole(str(self.output / "report.html"), page)
        return self.output / "report.html"

    def summary(
        self,
        stores: dict[str, EpisodeStore],
        report: EpisodeReport,
        words: dict[str, ParaphraseScores] | None,
        registered: Registration,
        action: Prediction,
        acted: ClosedLoopReport | None,
        page: Path,
    ) -> JsonSummary:
        losses = [line["loss"] for line in read_metrics(self.output / "train/metrics.jsonl") if "loss" in line]
        failures = shortfalls(report) + (paraphrase_shortfalls(words["use-multilingual"]) if words else [])
        num_steps = sum(store.num_steps for store in stores.values())
        say = self.console.print
        say(f"\nread     {stores['train'].num_episodes} + {stores['val'].num_episodes} episodes, {num_steps} steps")
        say(f"loss     {losses[0]:.3f} first, {losses[-1]:.3f} last")
        baselines = ", ".join(f"{name.replace('_', ' ')} {interval.mean:.3f}" for name, interval in report.lazy.items())
        say(f"accuracy {report.token_accuracy.mean:.3f} on held-out episodes; {baselines}")
        if words:
            ratios = ", ".join(f"{100 * scores.ratio:.0f} % with {encoder}" for encoder, scores in words.items())
            say(f"words    accuracy on paraphrases, of that on the instructions themselves: {ratios}")
        if acted is not None:
            rates = ", ".join(f"{name} {percent(actor.rate)}" for name, actor in acted.actors.items())
            say(f"acts     success in Meta-World: {rates}")
        say(f"model    {registered.model_uri}")
        say(f"MLflow   mlflow ui --backend-store-uri {registered.tracking_uri}")
        say(f"report   {page}")
        say(f"took     {time.monotonic() - self.began:.0f} s")
        for failure in failures:
            say(f"[bold red]not shown: {failure}")
        return {
            "evaluation": report.to_json(),
            "paraphrases": {encoder: asdict(scores) for encoder, scores in (words or {}).items()},
            "closed_loop": None if acted is None else acted.to_json(),
            "registered": asdict(registered),
            "action": action,
            "report": str(page),
            "shortfalls": failures,
            "exit_code": 1 if failures else 0,
        }

    def _say(self, stage: str, what: str) -> None:
        self.console.print(f"[bold]{stage:<10}[/bold] {what}")


def shortfalls(report: EpisodeReport) -> list[str]:
    """The claims that the evaluation did not show, in words."""
    missing = [
        f"the policy beats {name.replace('_', ' ')} (margin {margin.mean:+.3f}, from {margin.low:+.3f})"
        for name, margin in report.margin.items()
        if margin.low <= 0
    ]
    missing += [
        f"accuracy falls with {name.replace('_', ' ')} (fall {scores.fall.mean:+.3f})"
        for name, scores in (report.perturbed or {}).items()
        if scores.fall.low <= 0
    ]
    return missing


def paraphrase_shortfalls(scores: ParaphraseScores) -> list[str]:
    """The claims that the paraphrases did not show, in words."""
    missing = []
    if scores.ratio < _LEAST_RATIO:
        missing.append(f"paraphrases reach {_LEAST_RATIO} of the accuracy on the instructions ({scores.ratio:.3f})")
    if scores.opposite_instruction.high >= scores.own_instruction.mean:
        missing.append(
            f"the opposite task's instruction is told apart ({scores.opposite_instruction.mean:.3f} accuracy)"
        )
    return missing


def _one_ray() -> AbstractContextManager[None]:
    """The training's Ray, which the conversions before it use too: a start takes some 10 s."""
    launch = load_recipe(RECIPE).launch
    return launch.connected() if isinstance(launch, RayLaunch) else nullcontext()


def _experiment(steps: int | None) -> Experiment:
    experiment = load_recipe(RECIPE)
    return experiment if steps is None else replace(experiment, loop=replace(experiment.loop, steps=steps))


def _in_process(experiment: Experiment) -> Experiment:
    """The same training without Ray's start: one process takes the micro-batches of all workers at once."""
    loop = replace(experiment.loop, micro_batch=experiment.loop.global_batch)
    return replace(
        experiment, name=f"{experiment.name}_hash", loop=loop, launch=InProcess(), engine=TorchEngineConfig()
    )
