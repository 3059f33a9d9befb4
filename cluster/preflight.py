"""python -m cluster.preflight python=3.11 ray=2.60 ... -- COMMAND: on the cluster, is this the environment that the
submitter has? Then COMMAND takes this process's place; else one sentence says what differs, and the exit code is 3.

Runs on whatever Python the cluster has: nothing here needs a new one, or a package.
"""

import importlib.metadata
import os
import platform
import sys

MISMATCH = 3


def differences(wanted):
    """Sentences about what is missing here, or of another minor version; `wanted` maps distributions to versions."""
    found = []
    for name, version in wanted.items():
        here = platform.python_version() if name == "python" else _installed(name)
        if here is None:
            found.append(f"no {name}")
        elif here.split("+")[0].split(".")[:2] != version.split(".")[:2]:
            found.append(f"{name} {here} instead of {version}")
    return found


def _installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(arguments):
    split = arguments.index("--")
    wanted = dict(word.split("=", 1) for word in arguments[:split])
    found = differences(wanted)
    if found:
        print(
            f"rtp: the cluster's {sys.executable} has {', '.join(found)}: start its nodes from the environment that "
            f"the job was submitted from, with its bin folder first on PATH, or submit with --install",
            file=sys.stderr,
        )
        return MISMATCH
    command = arguments[split + 1 :]
    sys.stdout.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
