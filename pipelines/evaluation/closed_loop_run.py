"""`rtp evaluate MODEL --env ...`: the episodes of the policy and of what it is compared with, acted once each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cluster.session import RaySession, connect
from pipelines.config.compute import Compute, num_threads
from pipelines.evaluation.actors import CopyActor, MeanActor, PolicyActor, RandomActor, ReplayActor
from pipelines.evaluation.closed_loop import Actor, Episode, EpisodeResult, run_episodes
from pipelines.evaluation.closed_loop_config import ClosedLoopConfig, ShownFrames
from pipelines.evaluation.closed_loop_report import (
    AGAINST,
    BLANK,
    POLICY,
    REWORDED,
    SHUFFLED,
    SWAPPED,
    ClosedLoopReport,
    closed_loop_report,
)
from pipelines.evaluation.demonstrations import Demonstration
from pipelines.evaluation.episode_ledger import EpisodeLedger, fingerprint
from pipelines.evaluation.record import FOLDER
from pipelines.evaluation.simulator_pool import LocalPool, RayPool
from pipelines.evaluation.statistics import Bootstrap
from pipelines.evaluation.wordings import Wordings, reworded
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.trained_model import with_instructions
from pipelines.reports.video import video_name, write_video
from pipelines.terminal.progress_bar import Count, counting
from preprocessing.simulation.choice import other_instructions
from preprocessing.simulation.environment import EnvironmentConfig
from rt_models.spec import DatasetContract

log = logging.getLogger(__name__)

Pool = LocalPool | RayPool


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """An evaluation that is ready to run: everything was checked."""

    trained: TrainedModel
    against: TrainedModel | None
    dataset: DatasetContract
    environments: Sequence[EnvironmentConfig]
    seeds: Sequence[int]
    config: ClosedLoopConfig
    demonstrations: Mapping[str, Demonstration]
    home: str
    compute: Compute
    wordings: Wordings = field(default_factory=dict)
    frames: ShownFrames | None = None

    def episodes(self, instructions: Mapping[str, str] | None = None) -> list[Episode]:
        """A task's episodes follow one another: a simulator changes its scene seldom."""
        return [
            Episode(
                environment=environment,
                seed=seed,
                instruction=(instructions or {}).get(environment.task, environment.instruction),
            )
            for environment in self.environments
            for seed in self.seeds
        ]

    def run(self, bootstrap: Bootstrap) -> ClosedLoopReport:
        """Act all episodes that an earlier, interrupted run has not acted."""
        ledger = self._ledger()
        if len(ledger):
            log.warning("%d episodes of an interrupted evaluation are kept", len(ledger))
        actors = self._actors()
        total = sum(len(episodes) for _, episodes in actors.values())
        progress = counting(f"act in {len(self.environments)} tasks", total)
        # A policy that acts for one robot gains little by several threads, which would take turns with the simulators.
        # And it is one number everywhere, so that the same policy answers the same to the last bit.
        with num_threads(1), self._pool() as pool, progress as count:
            results = {
                name: self._act(name, new_actor, episodes, pool, ledger, count)
                for name, (new_actor, episodes) in actors.items()
            }
        report = closed_loop_report(
            results,
            environment=str(self.config.env),
            contract=self.trained.contract.id,
            seeds=self.seeds,
            max_steps=self.environments[0].max_steps,
            control_hz=self.dataset.control_hz,
            measure=self.environments[0].measure,
            bootstrap=bootstrap,
            frames=self.frames,
        )
        ledger.delete()
        return report

    def _actors(self) -> dict[str, tuple[Callable[[], Actor] | None, list[Episode]]]:
        """By name: what makes the actor, None for the simulator's expert, and its episodes. The policy comes first."""
        config, episodes = self.config, self.episodes()
        policy, contract = InferenceModel(with_instructions(self.trained), self.compute), self.trained.contract
        actors: dict[str, tuple[Callable[[], Actor] | None, list[Episode]]] = {
            POLICY: (lambda: PolicyActor(policy, self.dataset), episodes)
        }
        if self.against is not None:
            other = InferenceModel(with_instructions(self.against), self.compute)
            theirs = self.against.contract.dataset(config.dataset)
            actors[AGAINST] = (lambda: PolicyActor(other, theirs), episodes)
        if config.swap_instructions:
            swapped = other_instructions([environment.task for environment in self.environments])
            actors[SWAPPED] = (lambda: PolicyActor(policy, self.dataset), self.episodes(swapped))
        if self.wordings:
            actors[REWORDED] = (lambda: PolicyActor(policy, self.dataset), self._reworded())
        if config.shuffle_embeddings:
            actors[SHUFFLED] = (lambda: PolicyActor(policy, self.dataset, shuffle_embeddings=True), episodes)
        if config.blank_images:
            actors[BLANK] = (lambda: PolicyActor(policy, self.dataset, blank_images=True), episodes)
        makers: dict[str, Callable[[], Actor] | None] = {
            "random": lambda: RandomActor(contract, self.dataset),
            "mean_action": lambda: MeanActor(contract, self.dataset),
            "copy": lambda: CopyActor(contract, self.dataset),
            "replay": lambda: ReplayActor(self.demonstrations),
            "expert": None,
        }
        for name in config.baselines:
            shown = [e for e in episodes if self._has(name, e)]
            if shown:
                actors[name.replace("_", " ")] = (makers[name], shown)
        return actors

    def _reworded(self) -> list[Episode]:
        """Of the tasks that have other words; each seed takes the next wording."""
        return [
            replace(episode, instruction=reworded(self.wordings, self.seeds.index(episode.seed))[episode.instruction])
            for episode in self.episodes()
            if episode.instruction in self.wordings
        ]

    def _has(self, baseline: str, episode: Episode) -> bool:
        """Whether there is a demonstration to replay, or an expert."""
        if baseline == "expert":
            return episode.environment.has_expert
        return baseline != "replay" or episode.task in self.demonstrations

    def _act(
        self,
        name: str,
        new_actor: Callable[[], Actor] | None,
        episodes: Sequence[Episode],
        pool: Pool,
        ledger: EpisodeLedger,
        count: Count,
    ) -> list[EpisodeResult]:
        """The results in the order of `episodes`."""
        missing = [episode for episode in episodes if ledger.result(name, episode) is None]
        count(len(episodes) - len(missing))
        if new_actor is None:
            acted = ((result, []) for result in _expert_results(pool, missing))
        else:
            acted = run_episodes(pool, new_actor, missing)
        for result, frames in acted:
            if name == POLICY and self.config.video is not None and frames:
                path = self.config.video / video_name(result)
                write_video(path, frames, frames_per_second=self.dataset.control_hz)
            ledger.add(name, result)
            count(1)
        return [result for episode in episodes if (result := ledger.result(name, episode)) is not None]

    def _ledger(self) -> EpisodeLedger:
        setting = {
            "environments": [asdict(environment) for environment in self.environments],
            "contract": self.trained.contract.id,
            "dataset": self.dataset.name,
            "against": None if self.against is None else fingerprint(self.against.model, {}),
            "demonstrations": self.demonstrations,
            "compute": asdict(self.compute),
        }
        folder = Path(self.home if "://" not in self.home else ".") / FOLDER
        return EpisodeLedger(folder / f"unfinished-{fingerprint(self.trained.model, setting)}.jsonl")

    @contextmanager
    def _pool(self) -> Iterator[Pool]:
        if self.config.workers == 0:
            with closing(LocalPool()) as pool:
                yield pool
            return
        size = min(self.config.workers, len(self.environments) * len(self.seeds))
        with connect(RaySession(num_cpus=size)), closing(RayPool(size)) as pool:
            yield pool


def _expert_results(pool: Pool, episodes: Sequence[Episode]) -> Iterator[EpisodeResult]:
    """A few at a time, so that progress shows."""
    for first in range(0, len(episodes), pool.size):
        some = list(episodes[first : first + pool.size])
        for episode, expert in zip(some, pool.expert_episodes(some), strict=True):
            yield EpisodeResult(
                task=episode.task,
                seed=episode.seed,
                instruction=episode.instruction,
                ending="success" if expert.success else "step limit",
                steps=expert.steps,
                total_reward=expert.total_reward,
            )
