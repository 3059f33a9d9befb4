"""Work that all ranks finish or none does: on rank 0 alone, which sends its result to the others, or on every rank.

If one rank failed alone, the others would wait for it in a collective until their timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cluster.context import WorkerContext

T = TypeVar("T")


def on_rank_0(context: WorkerContext, act: Callable[..., T], *arguments: object) -> T:
    """The result of act(*arguments), called on rank 0 alone, on every rank; collective.

    The result must be small and picklable. If `act` fails, every rank raises: rank 0 the error itself, the others a
    ValueError or OSError with its message.
    """
    result, error = _attempt(act, *arguments) if context.rank == 0 else (None, None)
    result, failure = context.broadcast((result, _portable(error)))
    if failure is not None:
        raise (error or failure)
    return result  # type: ignore[return-value]


def on_every_rank(context: WorkerContext, act: Callable[..., T], *arguments: object) -> list[T]:
    """The results of act(*arguments), called on every rank, by rank; collective.

    The results must be small and picklable. If `act` fails on any rank, every rank raises the error of the first of
    them: that rank the error itself, the others a ValueError or OSError with its message.
    """
    result, error = _attempt(act, *arguments)
    outcomes = context.gather((result, _portable(error)))
    for rank, (_, failure) in enumerate(outcomes):
        if failure is not None:
            raise (error if rank == context.rank and error is not None else failure)
    return [result for result, _ in outcomes]  # type: ignore[return-value]


def _attempt(act: Callable[..., T], *arguments: object) -> tuple[T | None, Exception | None]:
    try:
        return act(*arguments), None
    except Exception as error:
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """The error in a form that can be sent to other processes: its own class may not be picklable."""
    if error is None:
        return None
    return ValueError(str(error)) if isinstance(error, ValueError) else OSError(str(error) or repr(error))
