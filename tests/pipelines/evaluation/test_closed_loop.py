"""Episodes in simulators: how they end, what is kept of them, and that nothing else decides their result."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from cluster.session import RaySession, connect
from pipelines.evaluation.actors import ReplayActor
from pipelines.evaluation.closed_loop import Actor, Episode, EpisodeResult, run_episodes
from pipelines.evaluation.closed_loop_config import ClosedLoopConfig
from pipelines.evaluation.closed_loop_report import BLANK, POLICY, SWAPPED, actor_report, closed_loop_report, verdict
from pipelines.evaluation.closed_loop_run import ClosedLoop
from pipelines.evaluation.closed_loop_setup import require_fit
from pipelines.evaluation.episode_ledger import EpisodeLedger, fingerprint
from pipelines.evaluation.simulator_pool import LocalPool, RayPool
from pipelines.evaluation.statistics import Bootstrap
from pipelines.evaluation.tables import print_rows
from pipelines.reports.rollout_page import success_rows
from preprocessing.simulation.environment import Observation
from tests.rt_models.test_robot_inputs import state
from tests.rt_models.test_spec import ZEROS, contract
from tests.support.line_environment import LineConfig


class Walker:
    """Goes right by a share that depends on what it has seen in this episode; gives up after `patience` steps."""

    sees_frames = True

    def __init__(self, patience: int = 100) -> None:
        self._patience = patience

    def begin(self, episode: Episode) -> None:
        self._seen: list[float] = []

    def act(self, observation: Observation) -> Mapping[str, float] | None:
        self._seen.append(float(observation.state_S[0]))
        return None if len(self._seen) > self._patience else {"x": 0.1 + 0.2 * abs(self._seen[0])}


def episodes(*seeds: int) -> list[Episode]:
    return [Episode(environment=LineConfig(), seed=seed, instruction="go right") for seed in seeds]


def acted(pool: LocalPool | RayPool, actor: Actor, *seeds: int) -> dict[int, EpisodeResult]:
    results = run_episodes(pool, lambda: Walker() if actor is None else actor, episodes(*seeds))
    return {result.seed: result for result, _ in results}


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    with connect(RaySession(num_cpus=4)):
        yield


def test_a_policy_that_reads_a_state_which_the_simulator_lacks_is_refused_before_it_acts() -> None:
    of_line, action = contract(ZEROS).datasets[0], contract(ZEROS).action
    moved_by = (action.names[1],)
    require_fit("runs/first", action, of_line, LineConfig(moved_by=moved_by))
    require_fit("runs/first", action, replace(of_line, state=state("state/place")), LineConfig(moved_by=moved_by))
    with pytest.raises(ValueError, match=r"runs/first reads the state state/speed, .* it has state/place"):
        require_fit("runs/first", action, replace(of_line, state=state("state/speed")), LineConfig(moved_by=moved_by))
    with pytest.raises(ValueError, match="trained on a, whose robot has no x"):
        require_fit("runs/first", action, of_line, LineConfig())


def test_an_episode_ends_by_success_by_the_policys_word_or_at_the_limit() -> None:
    walked = acted(LocalPool(), Walker(), *range(12))
    assert {result.ending for result in walked.values()} == {"success", "step limit"}
    gave_up = acted(LocalPool(), Walker(patience=2), *range(12))
    assert {result.ending for result in gave_up.values() if result.steps == 2} >= {"terminated"}
    limited = next(result for result in walked.values() if result.ending == "step limit")
    assert limited.steps == 8 and not limited.success


def test_an_error_is_a_failure_with_its_sentence_and_the_others_go_on() -> None:
    results = acted(LocalPool(), Walker(), 1, 13, 2)
    assert results[13].ending == "error" and not results[13].success
    assert results[13].error == "RuntimeError: the simulation diverged"
    assert set(results) == {1, 2, 13} and results[2].ending != "error"


def test_nothing_is_drawn_for_an_actor_that_sees_no_frames() -> None:
    def blind() -> Walker:
        walker = Walker()
        walker.sees_frames = False
        return walker

    seen, unseen = (list(run_episodes(LocalPool(), new_actor, episodes(1, 2))) for new_actor in (Walker, blind))
    assert [result for result, _ in seen] == [result for result, _ in unseen]
    assert all(len(frames) == result.steps + 1 for result, frames in seen)
    assert not any(frames for _, frames in unseen)


def test_a_policy_that_fails_fails_its_episode() -> None:
    class Broken(Walker):
        def act(self, observation: Observation) -> Mapping[str, float] | None:
            raise ValueError("no such instruction")

    assert acted(LocalPool(), Broken(), 1)[1].error == "ValueError: no such instruction"


def test_actions_are_counted_in_physical_units() -> None:
    result = acted(LocalPool(), ReplayActor({"line": [{"x": 0.1}, {"x": -0.3}]}), 3)[3]
    assert result.ending == "terminated" and result.steps == 2
    assert result.mean_action["x"] == pytest.approx(-0.1) and result.largest_action["x"] == pytest.approx(0.3)


def test_results_do_not_depend_on_the_number_of_simulators(on_ray: None) -> None:
    seeds, alone = range(9), acted(LocalPool(), Walker(), *range(9))
    for size in (1, 4):
        pool = RayPool(size)
        together = {result.seed: result for result, _ in run_episodes(pool, Walker, episodes(*seeds))}
        pool.close()
        assert together == alone


def test_a_simulator_that_dies_fails_its_episode_and_is_replaced(on_ray: None) -> None:
    pool = RayPool(2)
    results = {result.seed: result for result, _ in run_episodes(pool, Walker, episodes(99, 1, 2, 3))}
    pool.close()
    assert results[99].ending == "error" and "process died" in str(results[99].error)
    assert [results[seed].ending for seed in (1, 2, 3)] == [
        acted(LocalPool(), Walker(), s)[s].ending for s in (1, 2, 3)
    ]


# --- what is kept ---


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "evaluations/unfinished.jsonl"
    results = acted(LocalPool(), Walker(), 1, 2, 3)
    ledger = EpisodeLedger(path)
    for seed in (1, 2, 3):
        ledger.add("policy", results[seed])
    path.write_bytes(path.read_bytes()[:-20])  # killed in the middle of a line
    again = EpisodeLedger(path)
    kept = [again.result("policy", episode) for episode in episodes(1, 2, 3)]
    assert kept == [results[1], results[2], None]
    again.add("policy", results[3])
    assert len(EpisodeLedger(path)) == 3
    again.delete()
    assert not path.exists()


def test_an_interrupted_evaluation_acts_what_is_missing_and_comes_to_the_same(tmp_path: Path) -> None:
    class Dies(LocalPool):
        """Ctrl-C in the third episode."""

        begun = 0

        def reset(self, simulator: int, episode: Episode) -> None:
            self.begun += 1
            if self.begun == 3:
                raise KeyboardInterrupt
            super().reset(simulator, episode)

    class Counts(LocalPool):
        seeds: tuple[int, ...] = ()

        def reset(self, simulator: int, episode: Episode) -> None:
            self.seeds += (episode.seed,)
            super().reset(simulator, episode)

    loop: Any = SimpleNamespace(config=ClosedLoopConfig(env="line:line"))

    def act(pool: LocalPool, path: Path) -> list[EpisodeResult]:
        return ClosedLoop._act(
            loop, POLICY, Walker, episodes(1, 2, 3, 4), pool, EpisodeLedger(path), lambda count: None
        )

    whole = act(LocalPool(), tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        act(Dies(), tmp_path / "killed.jsonl")
    again = Counts()
    assert act(again, tmp_path / "killed.jsonl") == whole
    assert again.seeds == (3, 4)


def test_an_episode_with_other_words_is_another_one(tmp_path: Path) -> None:
    ledger = EpisodeLedger(tmp_path / "ledger.jsonl")
    ledger.add("policy", acted(LocalPool(), Walker(), 1)[1])
    (episode,) = episodes(1)
    assert ledger.result("policy", episode) is not None
    assert ledger.result("policy", replace(episode, instruction="go left")) is None
    assert ledger.result("random", episode) is None


def test_other_weights_and_other_settings_are_another_evaluation() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 3).to(torch.bfloat16)
    first = fingerprint(model, {"seed": 1})
    assert first == fingerprint(model, {"seed": 1}) != fingerprint(model, {"seed": 2})
    with torch.no_grad():
        model.bias[0] += 1
    assert fingerprint(model, {"seed": 1}) != first


# --- the report ---


def result(task: str, seed: int, success: bool) -> EpisodeResult:
    ending = "success" if success else "step limit"
    return EpisodeResult(
        task=task, seed=seed, instruction="", ending=ending, steps=5 + seed, total_reward=float(success)
    )


def test_rates_steps_and_verdicts() -> None:
    policy = [result(task, seed, seed < 9) for task in ("a", "b") for seed in range(10)]
    lazy = [result(task, seed, task == "a" and seed < 2) for task in ("b", "a") for seed in reversed(range(10))]
    report = closed_loop_report(
        {POLICY: policy, "replay": lazy},
        environment="line:a,b",
        contract="c",
        seeds=range(10),
        max_steps=62,
        control_hz=10,
        bootstrap=Bootstrap(),
    )
    mine = report.actors[POLICY].tasks["a"]
    assert (mine.successes, mine.episodes, mine.mean_steps_to_success) == (9, 10, 9.0)
    assert report.actors[POLICY].rate.mean == 0.9
    assert report.compared["replay"].only_first == 16 and report.compared["replay"].only_second == 0
    told = verdict("replay", report.compared["replay"])
    assert told.startswith("policy against replay: +80.0 points [") and told.endswith(": above")
    head, rows = success_rows(report)
    assert head == ["", "policy", "replay"]
    assert rows == [["a", "9/10  90 % [60, 98]", "2/10"], ["b", "9/10  90 % [60, 98]", "0/10"]]
    data = report.to_json()
    assert data["actors"]["policy"]["tasks"]["a"]["successes"] == 9
    assert len(data["actors"]["replay"]["episodes"]) == 20


@pytest.mark.parametrize("succeeds", [False, True])
def test_tasks_without_a_difference_are_no_certainty(succeeds: bool) -> None:
    """Resampling equal outcomes gives an interval of no width."""
    report = actor_report([result(task, seed, succeeds) for task in ("a", "b") for seed in range(10)], Bootstrap())
    assert report.rate.high - report.rate.low == pytest.approx(0.161, abs=0.001)  # Wilson's, of 20 episodes
    assert report.rate.mean == float(succeeds)


def test_a_narrow_window_keeps_the_names_of_tasks() -> None:
    names = (POLICY, SWAPPED, BLANK, "random", "mean action", "replay", "expert")
    tasks = ("button-press-topdown-v3", "faucet-close-v3")
    one = [result(task, seed, seed > 4) for task in tasks for seed in range(20)]
    report = closed_loop_report(
        dict.fromkeys(names, one),
        environment="line:a",
        contract="c",
        seeds=range(20),
        max_steps=62,
        control_hz=10,
        bootstrap=Bootstrap(samples=10),
    )
    console = Console(width=80, file=io.StringIO())
    print_rows(*success_rows(report), console)
    printed = console.file.getvalue()
    assert "button-p" in printed and "faucet-c" in printed
    assert all(word in printed for word in ("75 %", "swapped", "blank", "mean", "expert"))
    assert max(map(len, printed.splitlines())) <= 80
