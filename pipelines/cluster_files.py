"""`rtp cluster render KIND`: the file that starts a cluster for this project: Kubernetes, AWS, Google Cloud, Slurm.

KIND is kuberay (a RayCluster), kuberay-job (a RayJob; its command stands after --), aws or gcp (for ray up), slurm, or
docker (the image of all nodes). Nothing is started. No secret stands in a file: it says where the nodes find theirs.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cluster.templates.docker import Docker
from cluster.templates.kuberay import KubeRay, KubeRayJob
from cluster.templates.node_groups import NodeGroups
from cluster.templates.ray_up import Aws, Gcp
from cluster.templates.slurm import Slurm
from pipelines.config.arguments import UsageError, parse
from pipelines.config.serialization import did_you_mean
from pipelines.terminal.atomic_files import write_whole
from pipelines.terminal.commands import COMMANDS, JsonSummary
from pipelines.terminal.secret_values import holds_secret

KINDS: Mapping[str, type[NodeGroups]] = {
    "kuberay": KubeRay,
    "kuberay-job": KubeRayJob,
    "aws": Aws,
    "gcp": Gcp,
    "slurm": Slurm,
    "docker": Docker,
}
_HELP = ("-h", "--help")


def main(arguments: list[str]) -> JsonSummary:
    """Render one file, to --output or to standard output."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    words, command = arguments[:split], tuple(arguments[split + 1 :])
    kind = _kind(words)
    groups = parse(
        KINDS[kind],
        words[2:],
        prog=f"rtp cluster render {kind}",
        description=f"{KINDS[kind].__doc__}\n\n{__doc__}",
        first=("--gpu-nodes", "--gpus", "--cpu-nodes", "--image", "--output"),
        example=f"rtp cluster render {kind}{_EXAMPLES.get(kind, ' --gpu-nodes 2 --gpus 8 --cpu-nodes 4')}",
    )
    if isinstance(groups, KubeRayJob):
        _require_command(command)
        groups = replace(groups, command=command)
    elif command:
        raise UsageError(f"rtp cluster render {kind} takes no command after --: kuberay-job does")
    text = groups.render()
    if command[1:] and "--resume" not in command and {"train", "tune"} & set(command[:2]):
        _note("without --resume the command starts from the beginning, or refuses to, when it is run again")
    if groups.output is None:
        sys.stdout.write(text)
        return {"kind": kind, "file": None, "text": text}
    path = _written(groups, text)
    _note(f"{path}: the lines at its top say how it is used")
    return {"kind": kind, "file": str(path)}


_EXAMPLES = {
    "kuberay-job": " --image REGISTRY/rt-pipelines:0.1.0 -- train rt1_fractal --data s3://... --resume",
    "docker": " --output DIR",
}


def _kind(words: list[str]) -> str:
    """Raises UsageError unless the words begin with render KIND."""
    kinds = ", ".join(KINDS)
    if any(word in _HELP for word in words) and not set(words) & set(KINDS):
        print("usage: rtp cluster render KIND [OPTIONS] [--json]\n")
        width = shutil.get_terminal_size().columns
        print(*(textwrap.fill(part, width) for part in (__doc__ or "").split("\n\n")), sep="\n\n")
        print(f"\nkinds: {kinds}\nrtp cluster render KIND --help lists the options of a kind")
        print("\nExample:\n  rtp cluster render kuberay --gpu-nodes 2 --gpus 8")
        raise SystemExit(0)
    if words[:1] != ["render"]:
        raise UsageError(f"rtp cluster: the one thing it does is render KIND, with one of {kinds}")
    if len(words) < 2 or words[1].startswith("-"):
        raise UsageError(f"rtp cluster render: name a kind first, one of {kinds}")
    if words[1] not in KINDS:
        raise UsageError(f"there is no kind {words[1]!r}{did_you_mean(words[1], list(KINDS))}; there are {kinds}")
    return words[1]


def _require_command(command: tuple[str, ...]) -> None:
    """Raises UsageError where the words begin with no command of rtp, ValueError where they hold a secret."""
    name = "".join((command[1:] if command[:1] == ("rtp",) else command)[:1])
    if command and name not in COMMANDS:
        raise UsageError(f"rtp has no command {name!r}{did_you_mean(name, list(COMMANDS))}")
    if any(holds_secret(part) for word in command for part in (word, word.partition("=")[2])):
        raise ValueError(
            "the command has a URL with a user, password or signature, or JSON with a key, secret, token or password, "
            "which the file would show: use --secret"
        )


def _written(groups: NodeGroups, text: str) -> Path:
    """The file, which holds the text. Raises ValueError if it holds another, which somebody may have edited."""
    assert groups.output is not None
    if not groups.output.strip() or "://" in groups.output:
        raise UsageError(f"--output {groups.output!r} is no local file or folder")
    path = Path(groups.output).absolute()
    if path.is_dir() or groups.output.endswith("/"):
        path /= groups.file_name
    if path.exists() and path.read_text(errors="replace") != text:
        raise ValueError(f"{path} is there already and says something else: move it away, or give another --output")
    write_whole(str(path), text)
    return path


def _note(sentence: str) -> None:
    print(f"rtp: {sentence}", file=sys.stderr, flush=True)
