"""What a resumed sweep may change: what its trials train on stays, where their batches are read does not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.engine import DeepSpeedEngineConfig
from pipelines.catalogue import load_recipe
from pipelines.config.serialization import to_plain
from pipelines.sweeps.identity import SweepIdentity


def identity(**loader: Any) -> SweepIdentity:
    return SweepIdentity(
        sweep={"name": "a"}, experiment={"loader": loader}, stores=("x",), validation=(), fingerprints=("f",)
    )


def test_readers_may_move_and_a_record_of_before_they_could_is_continued() -> None:
    old = identity(memory_mb=8)
    identity(memory_mb=8, where="remote", remote_readers=4).require_same(old, "out")
    with pytest.raises(ValueError, match=r"experiment\.loader\.memory_mb was 8 and is now 9"):
        identity(memory_mb=9).require_same(old, "out")


@pytest.mark.parametrize(
    ("recipe", "part", "setting", "default", "other"),
    [
        ("rt1_tiny", ("model", "compute"), "depthwise", "auto", "conv"),
        ("rt2_tiny", ("model",), "compile", "off", "regions"),
        ("rt1_tiny", ("engine", "zero"), "communication", "fp32", "bf16"),
    ],
)
def test_a_record_of_before_there_was_a_setting_is_continued_under_its_default(
    recipe: str, part: tuple[str, ...], setting: str, default: str, other: str
) -> None:
    experiment = replace(load_recipe(recipe), engine=DeepSpeedEngineConfig())
    now, before = (replace(identity(), experiment=to_plain(experiment)) for _ in range(2))
    chosen, old = holding(now, part), holding(before, part)
    assert chosen[setting] == old.pop(setting) == default
    now.require_same(before, "out")
    chosen[setting] = other
    with pytest.raises(ValueError, match=rf"{setting} was {default} and is now {other}"):
        now.require_same(before, "out")


def holding(record: SweepIdentity, part: tuple[str, ...]) -> dict[str, Any]:
    data: Any = record.experiment
    for name in part:
        data = data[name]
    return data
