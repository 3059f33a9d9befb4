"""`rtp agreement`: offline scores of checkpoints against their success."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.evaluation.agreement import Scores

# RT-1 converged, RT-1 at 15 %, RT-1-X and RT-1 at its begin, picking a can: success on robots, and in SIMPLER, which
# stands for an offline score here (arXiv 2405.05941, its tables). The two best change places.
REAL, SIMULATED = (0.853, 0.920, 0.760, 0.133), (0.857, 0.710, 0.567, 0.027)


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean, "high": mean}


def written(folder: Path, step: int, offline: float | None, success: float | None, *, seed: int = 2_000_000) -> None:
    folder.mkdir(exist_ok=True)
    model = {"model": f"runs/a/checkpoints/step-{step}", "step": step}
    if offline is not None:
        scores = {"token_accuracy": interval(offline), "scaled_error": interval(1 - offline), "steps": 9}
        (folder / f"step-{step}-sample.json").write_text(json.dumps({**model, "evaluations": [scores]}))
    if success is not None:
        loop = {"environment": "metaworld:door-lock", "first_seed": seed, "episodes_per_task": 20}
        actors = {"policy": {"rate": interval(success)}}
        (folder / f"step-{step}-env.json").write_text(json.dumps({**model, "closed_loop": {**loop, "actors": actors}}))


def test_published_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, (real, simulated) in enumerate(zip(REAL, SIMULATED, strict=True)):
        written(tmp_path / "evaluations", step, simulated, real)
    assert main(["agreement", str(tmp_path / "evaluations"), "--json"]) == 0
    printed = capsys.readouterr().out
    found = {each["score"]: each for each in json.loads(printed.splitlines()[-1])["agreements"]}
    assert found["token_accuracy"]["mmrv"] == pytest.approx(2 * 0.067 / 4)
    assert found["token_accuracy"]["checkpoints"] == 4
    assert found["scaled_error"] == {**found["token_accuracy"], "score": "scaled_error"}  # an error that falls is good
    assert "4 checkpoints" in printed and "0.034" in printed


def test_a_policy_that_copies_its_state_is_not_the_better_one() -> None:
    place = [(f"runs/{name}", 1) for name in "ab"]
    offline = {"frozen_state/fall": (0.1, 0.4), "blank_images/fall": (0.4, 0.1)}
    found = Scores(
        offline={at: {name: falls[number] for name, falls in offline.items()} for number, at in enumerate(place)},
        simulated={at: {"success": success} for at, success in zip(place, (0.9, 0.2), strict=True)},
    ).agreements()
    assert {each.score: each.mmrv for each in found} == {"frozen_state/fall": 0.0, "blank_images/fall": 0.0}


@pytest.mark.parametrize(
    "files, words",
    [
        ([(0, 0.5, 0.5)], "1 checkpoints have both kinds of score, and two are needed"),
        ([(0, 0.5, None), (1, None, 0.5)], "0 checkpoints have both kinds"),
        ([], "holds no evaluation"),
        ([(0, 0.5, 0.0), (1, 0.7, 0.0)], "all 2 checkpoints have the same success (0), so there is nothing to rank"),
    ],
)
def test_what_does_not_compare_is_one_sentence(
    tmp_path: Path, files: list[tuple[int, float, float]], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.joinpath("evaluations").mkdir()
    for step, offline, success in files:
        written(tmp_path / "evaluations", step, offline, success)
    assert main(["agreement", str(tmp_path / "evaluations")]) == 2
    assert words in capsys.readouterr().err


def test_other_seeds_and_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, seed in ((0, 2_000_000), (1, 2_000_100)):
        written(tmp_path, step, 0.5, 0.5, seed=seed)
    assert main(["agreement", str(tmp_path)]) == 2
    assert "under different seeds" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("[1]")
    assert main(["agreement", str(tmp_path / "other.json")]) == 2
    assert "other.json is no evaluation" in capsys.readouterr().err
