"""Experts' rollouts in processes of their own, or in this one, behind one way to start them."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from preprocessing.simulation.gl_backend import gl_backend
from preprocessing.simulation.metaworld_rlds import Recording
from preprocessing.simulation.metaworld_rollout import roll_out

PendingRollout = Callable[[], Recording | None]
"""Waits for the recording; None if the expert failed."""
StartRollout = Callable[..., PendingRollout]
"""Takes the arguments of `roll_out`."""


@contextmanager
def rollouts(workers: int) -> Iterator[StartRollout]:
    """A way to start rollouts: ahead in `workers` processes, or with 0 when they are waited for."""
    if workers == 0:
        yield lambda *arguments, **settings: functools.partial(roll_out, *arguments, **settings)
        return
    gl_backend()  # MUJOCO_GL is tried once here
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield lambda *arguments, **settings: pool.submit(roll_out, *arguments, **settings).result
    finally:
        pool.shutdown(cancel_futures=True)
