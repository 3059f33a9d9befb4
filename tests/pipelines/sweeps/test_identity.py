"""What a resumed sweep may change: what its trials train on stays, where their batches are read does not matter."""

from __future__ import annotations

from typing import Any

import pytest

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
