"""Which revision of the code a run was made with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git_revision() -> str:
    """The revision of the code, with "+changes" where it differs from what is committed; "unknown" outside git.

    A submitted job has no repository: pipelines/submit.py sets RTP_GIT_REVISION.
    """
    if recorded := os.environ.get("RTP_GIT_REVISION"):
        return recorded
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"
