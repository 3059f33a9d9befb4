"""Faults planted in the stores of robots whose actions are not RT-1's are found, in the dimension that has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.audit.store_audit import audit
from tests.support.own_robots import ROBOTS, Fault, Robot, make_store


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)
@pytest.mark.parametrize("fault", ["none", "sign", "unit", "kind"])
def test_a_planted_fault_is_found(robot: Robot, fault: Fault, tmp_path: Path) -> None:
    verdicts = {verdict.name: verdict for verdict in audit(make_store(robot, tmp_path, fault=fault)).verdicts}
    contradicted = {name for name, verdict in verdicts.items() if verdict.finding == "contradicted"}
    wrong = {"none": (), "kind": robot.names}.get(fault, (robot.wrong,))
    assert contradicted == {f"{name}_{fault}" for name in wrong}
    for name in set(robot.names) - set(wrong):
        assert {verdicts[f"{name}_{what}"].finding for what in ("kind", "sign", "unit")} == {"holds"}
    if fault == "unit":
        assert verdicts[f"{robot.wrong}_unit"].measured == pytest.approx(57.3, rel=1e-2)
    if fault == "sign":
        assert "goes with falling" in verdicts[f"{robot.wrong}_sign"].sentence
