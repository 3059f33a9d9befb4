"""Processes of one's own without their imports: a server that has imported torch and more once forks them.

Forking the tests' own process would be unsafe beside its threads.
"""

from __future__ import annotations

from contextlib import chdir
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext

from tests.support.command_line import REPOSITORY


def fork_server() -> ForkServerContext:
    """Whose processes begin in this one's folder, and with the environment in which the server was started."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.server_imports"])
    with chdir(REPOSITORY):  # where it finds `tests`
        forkserver.ensure_running()
    return context
