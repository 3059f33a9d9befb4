"""Gates on success: the paired interval decides, and an alias moves by what models do in the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.evaluation.closed_loop import EpisodeResult
from pipelines.evaluation.closed_loop_report import AGAINST, POLICY, ClosedLoopReport, closed_loop_report
from pipelines.evaluation.statistics import Bootstrap
from pipelines.publishing.gates import Gate
from pipelines.publishing.registration import PromotionPolicy
from pipelines.publishing.success_gates import Trial, judge_success
from tests.support.untrained import write_untrained

TRIAL = Trial(environment="metaworld:door-lock")


def results(successes: list[bool]) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            task="door-lock-v3",
            seed=seed,
            instruction="lock the door",
            ending="success" if success else "step limit",
            steps=5,
            total_reward=float(success),
        )
        for seed, success in enumerate(successes)
    ]


def report(mine: list[bool], champion: list[bool] | None = None) -> ClosedLoopReport:
    acted = {POLICY: results(mine)} | ({AGAINST: results(champion)} if champion is not None else {})
    return closed_loop_report(
        acted,
        environment="metaworld:door-lock",
        contract="c",
        seeds=list(range(len(mine))),
        max_steps=62,
        control_hz=10,
        bootstrap=Bootstrap(),
    )


def judged(condition: str, mine: list[bool], champion: list[bool] | None = None) -> bool:
    return judge_success(Gate.parse(condition), report(mine, champion), holder="3").passed


def drawn(share: float, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).uniform(size=40) < share).tolist()


def test_a_number_is_compared_with_the_mean_over_tasks() -> None:
    mine = [True] * 12 + [False] * 8
    assert judged("success>=0.6", mine) and not judged("success>0.6", mine) and not judged("success>=0.65", mine)


def test_the_first_version_has_no_champion_to_beat() -> None:
    assert judged("success>champion", [False] * 20)


def test_chance_neither_stops_nor_shows_an_advance() -> None:
    mine, champion = drawn(0.5, 1), drawn(0.5, 2)
    assert judged("success>=champion", mine, champion) and judged("success>=champion", champion, mine)
    assert not judged("success>champion", mine, champion) and not judged("success>champion", champion, mine)


def test_a_clear_difference_decides_both_ways() -> None:
    good, bad = drawn(0.95, 1), drawn(0.2, 2)
    assert judged("success>champion", good, bad) and judged("success>=champion", good, bad)
    assert not judged("success>=champion", bad, good) and not judged("success>champion", bad, good)
    assert judged("success>=champion-0.9", bad, good) and not judged("success>champion+0.9", good, bad)


def test_the_verdict_names_both_and_the_pairs() -> None:
    text = judge_success(Gate.parse("success>=champion-0.05"), report([True, False], [True, True]), holder="3").text
    assert text.startswith("success 0.500 [") and ">= version 3-0.05" in text
    assert "in 2 pairs of episodes, McNemar p = " in text and text.endswith("passed")


@pytest.mark.parametrize(
    ("alias", "conditions", "stores", "trial", "sentence"),
    [
        ("champion", ["success>=0.5"], [], None, "give --env metaworld:TASK"),
        ("champion", ["loss<=2"], ["s"], TRIAL, "add --gate 'success>=champion'"),
        ("champion", ["success>=0.5", "loss<=2"], [], TRIAL, "give --data STORE"),
        (None, [], [], TRIAL, "give --alias"),
    ],
)
def test_what_does_not_go_together_is_refused(
    alias: str | None, conditions: list[str], stores: list[str], trial: Trial | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        PromotionPolicy.of(alias, conditions, stores, "val", trial)


def test_less_success_is_no_condition() -> None:
    with pytest.raises(ValueError, match="more success is better"):
        judged("success<=champion", [True], [True])


def test_without_a_gate_a_simulator_means_not_below_the_champion() -> None:
    (gate,) = PromotionPolicy.of("champion", [], [], "val", TRIAL).gates
    assert gate == Gate.parse("success>=champion")


@pytest.mark.usefixtures("drawing")
def test_an_alias_moves_by_what_models_do(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ends = []
    for seed, gate in enumerate(["success>=champion", "success>=champion", "success>champion"]):
        bundle = write_untrained(store, tmp_path / f"model-{seed}", seed=seed)
        words = ["--name", "arm", "--alias", "champion", "--env", "metaworld:assembly", "--episodes", "1"]
        code = main(["register", str(bundle), *words, "--gate", gate, "--json"])
        printed = capsys.readouterr()
        assert code in (0, 1), printed.err
        summary = json.loads(printed.out.splitlines()[-1])
        ends.append((code, summary["promoted"], summary["holder"]))
        assert len(summary["gates"]) == 1 and summary["gates"][0].startswith("success 0.000 [")
    assert ends == [(0, True, "1"), (0, True, "2"), (1, False, "2")]  # untrained models never succeed
