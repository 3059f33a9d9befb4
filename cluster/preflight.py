"""`python -m cluster.preflight python=3.11 ray=2.60 ... -- COMMAND` on a cluster: is its environment the submitter's?

If so, COMMAND replaces this process; else one sentence names the difference, and the exit code is 3.

Runs on whatever Python the cluster has, from 3.8: nothing here needs a newer one, or a package.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

MISMATCH = 3


def differences(wanted: dict[str, str]) -> list[str]:
    """Sentences about what is missing here, or of another minor version; `wanted` maps distributions to versions."""
    faults = []
    for name, version in wanted.items():
        here = platform.python_version() if name == "python" else _installed(name)
        if here is None:
            faults.append(f"no {name}")
        elif here.split("+")[0].split(".")[:2] != version.split(".")[:2]:
            faults.append(f"{name} {here} instead of {version}")
    return faults


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(arguments: list[str]) -> int:
    """The exit code, where something differs; else this does not return."""
    split = arguments.index("--")
    wanted = dict(word.split("=", 1) for word in arguments[:split])
    faults = differences(wanted)
    if faults:
        print(
            f"rtp: the cluster's {sys.executable} has {', '.join(faults)}: start its nodes from the environment that "
            f"the job was submitted from, with its bin folder first on PATH, or submit with --install",
            file=sys.stderr,
        )
        return MISMATCH
    command = arguments[split + 1 :]
    sys.stdout.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
