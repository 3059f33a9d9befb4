"""What rank 0 decides, every rank acts on; what fails on one rank ends all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.agreement import on_every_rank, on_rank_0
from cluster.context import LocalContext, WorkerContext
from tests.support.ranks import run_ranks


class OddError(ValueError):
    """One that cannot be unpickled: it takes more than its message."""

    def __init__(self, rank: int, step: int) -> None:
        super().__init__(f"rank {rank} fails at step {step}")


def fails_on(which: int, rank: int) -> str:
    if rank == which:
        raise OddError(rank, 7)
    return f"of rank {rank}"


def agreed(context: WorkerContext) -> list[Any]:
    rank, found = context.rank, []
    found.append(context.broadcast({"from": rank}))
    found.append(context.fork().broadcast(rank))
    found.append(on_rank_0(context, fails_on, 1, rank))  # rank 1 is not asked
    found.append(on_every_rank(context, fails_on, -1, rank))
    for act in (on_rank_0, on_every_rank):
        for which in (0, 1):
            try:
                found.append(act(context, fails_on, which, rank))
            except ValueError as error:
                found.append((type(error), str(error)))
    return found


def test_two_ranks_go_on_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = run_ranks(agreed, 2, tmp_path)
    assert first[:4] == second[:4] == [{"from": 0}, 0, "of rank 0", ["of rank 0", "of rank 1"]]
    by_0, by_1 = "rank 0 fails at step 7", "rank 1 fails at step 7"
    assert first[4:] == [(OddError, by_0), "of rank 0", (OddError, by_0), (ValueError, by_1)]
    assert second[4:] == [(ValueError, by_0), "of rank 0", (ValueError, by_0), (OddError, by_1)]


def test_one_process_agrees_with_itself() -> None:
    context = LocalContext("cpu")
    assert context.broadcast(3) == 3 and on_every_rank(context, fails_on, -1, 0) == ["of rank 0"]
    for act in (on_rank_0, on_every_rank):
        with pytest.raises(OddError, match="rank 0 fails"):
            act(context, fails_on, 0, 0)
