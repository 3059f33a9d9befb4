"""What a sweep refuses before it begins, and where sweeps are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.sweeps_for_tests import sweep
from tuning.population import Population
from tuning.search import GridSearch
from tuning.space import Choice, Uniform
from tuning.sweep import Asha, Budget, Objective, load_sweep, sweep_names

TWO = (Objective(metric="a", direction="min"), Objective(metric="b", direction="max"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {}}, "at least one setting"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"settings": {"x": 1}}, "both varies and sets x"),
        ({"objectives": TWO, "scheduler": Asha()}, "compares trials by one"),
        ({"scheduler": Population(), "seeds": (1, 2)}, "one seed"),
        ({"search": GridSearch(), "space": {"lr": Uniform(low=0.0, high=1.0)}}, "lr: a grid needs Choice"),
    ],
)
def test_what_cannot_work_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sweep(**changes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Budget(trials=0),
        lambda: Objective(metric="validation_loss", direction="lowest"),  # type: ignore[arg-type]
        lambda: Budget(trials=1, wall_s=0),
        lambda: Asha(grace_steps=0),
        lambda: Population(quantile=0.6),
    ],
)
def test_settings_out_of_range(make) -> None:
    with pytest.raises(ValueError, match=r"need|must be"):
        make()


def test_a_grid_is_not_larger_than_it_is() -> None:
    choices = {"kind": Choice(values=("a", "b", "c"))}
    assert sweep(space=choices, search=GridSearch(), budget=Budget(trials=9), seeds=(0, 1)).num_trials == 6
    assert sweep(budget=Budget(trials=9), seeds=(0, 1)).num_trials == 18


def test_shipped_sweeps_carry_the_name_of_their_file() -> None:
    assert sweep_names() == ["rt1_lr_wd", "rt1_mixture_weights", "rt1_pbt", "rt1_success", "rt2_robot_share"]
    assert [load_sweep(name).name for name in sweep_names()] == sweep_names()


def test_a_sweep_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from tests.support.sweeps_for_tests import sweep\n")
    assert load_sweep(str(mine)) == sweep()
    mine.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"has no function sweep\(\)"):
        load_sweep(str(mine))
    with pytest.raises(FileNotFoundError, match=r"no sweep file nowhere\.py"):
        load_sweep("nowhere.py")
