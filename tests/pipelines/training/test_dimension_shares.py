"""Which part of a mixture's samples trains which dimension."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.training.dimension_shares import dimension_shares, share_lines
from rt_models.spec import merge_contracts
from tests.support.own_robots import JOINTS, make_store


@pytest.mark.parametrize("absent", [(), (0,), (2, 6)])
def test_parts_of_each_dimension_add_up(absent: tuple[int, ...], tmp_path: Path) -> None:
    contract = make_store(JOINTS, tmp_path).contract
    (one,) = contract.datasets
    mask = tuple(place not in absent for place in range(7))
    other = replace(contract, datasets=(replace(one, name="other", action_mask=mask),))
    shares = dimension_shares(merge_contracts([contract, other]), {one.name: 1.0, "other": 3.0})
    assert list(shares) == list(JOINTS.names)
    for place, parts in enumerate(shares.values()):
        assert sum(parts.values()) == pytest.approx(1)
        assert parts == ({one.name: 1.0} if place in absent else {one.name: 0.25, "other": 0.75})
    if not absent:
        assert share_lines(shares) == ["joint_0 to joint_6: seven_joints 25.0 %, other 75.0 %"]
    if absent == (0,):
        assert share_lines(shares)[0] == "joint_0: seven_joints 100.0 %"
