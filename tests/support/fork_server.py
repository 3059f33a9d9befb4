"""Processes of one's own without their imports: a server that has imported torch and more once forks them.

Forking the tests' own process would be unsafe beside its threads.
"""

from __future__ import annotations

import os
from contextlib import chdir
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from unittest.mock import patch

from tests.support.command_line import REPOSITORY

_ENVIRONMENT = dict(os.environ)


def fork_server() -> ForkServerContext:
    """Whose processes begin in this one's folder, and with the environment that tests begin with."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.server_imports"])
    environment = patch.dict(os.environ, _ENVIRONMENT, clear=True)  # not that of the test which starts it
    with environment, chdir(REPOSITORY):  # where it finds `tests`
        forkserver.ensure_running()
    return context
