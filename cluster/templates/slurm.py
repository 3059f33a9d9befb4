"""A Slurm script that starts Ray on the nodes of a job and runs one command of rtp there: sbatch FILE train ...

With CPU nodes it is a heterogeneous job of two components. Slurm asks the script to stop some minutes before its time
is over; the training then saves a checkpoint, ends with exit code 75, and the job is queued again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from cluster.templates.node_groups import NodeGroups

JOIN_S = 300  # in which all nodes of a job join

_HEAD = """\
#!/bin/bash
# Ray on the nodes of a Slurm job, and one command of rtp on it:
#     sbatch {file} train rt1_fractal --data STORE --output DIR --resume ...
# STORE and DIR lie on a file system that all nodes share, or are s3:// or gs:// URLs.{environment}
"""
_BODY = """
set -euo pipefail
if [ $# -eq 0 ]; then
    echo "usage: sbatch $0 COMMAND ..., such as train rt1_fractal --data STORE --output DIR --resume" >&2
    exit 2
fi
{in_image}
# A token of this job alone, in its environment: other users of the machines cannot reach its Ray.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0 RTP_WAIT_FOR_NODES_S={wait_s}
ulimit -n "$(ulimit -Hn)"

# The address by which the others reach this node: the first of its own, or HEAD_IP where it has several networks.
read -r first_ip _ <<< "$(hostname -I)"
head_ip=${{HEAD_IP:-$first_ip}}
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$head_ip:$port"
store={store}
folder=/tmp/ray-$SLURM_JOB_ID

started=()
trap 'kill "${{started[@]}}" 2> /dev/null || true; wait' EXIT

{run}ray start --head --block --node-ip-address="$head_ip" --port="$port" --temp-dir="$folder" \\
    --include-dashboard=false --object-store-memory="$store" --num-cpus={head_cpus} --num-gpus={head_gpus} &
started+=($!)
until {run}ray health-check --address "$RAY_ADDRESS" 2> /dev/null; do
    kill -0 "${{started[0]}}" 2> /dev/null || {{ echo "Ray's head has not started on $(hostname)" >&2; exit 1; }}
    sleep 2
done
{workers}
# Slurm's warning (TERM) goes to the command, which saves a checkpoint and ends with 75.
command=
trap 'asked=yes; [ -z "$command" ] || kill -TERM "$command" 2> /dev/null || true' TERM
{run}rtp "$@" &
command=$!
while true; do  # a signal ends `wait` before the command has ended
    asked='' code=0
    wait "$command" || code=$?
    [ -n "$asked" ] || break
done
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID" && echo "stopped with a checkpoint; queued again" >&2
fi
exit "$code"
"""
_OTHERS = """\
if [ "${{SLURM_JOB_NUM_NODES{suffix}}}" -gt 1 ]; then
    srun{group} --nodes=$((SLURM_JOB_NUM_NODES{suffix} - 1)) --exclude="$SLURMD_NODENAME" --ntasks-per-node=1 \\
        --cpus-per-task={cpus} \\
        {run}ray start --block --address="$RAY_ADDRESS" --object-store-memory="$store" \\
        --num-cpus={cpus} --num-gpus={gpus} &
    started+=($!)
fi"""
_CPU_GROUP = """\
srun --het-group=1 --ntasks-per-node=1 --cpus-per-task={cpus} \\
    {run}ray start --block --address="$RAY_ADDRESS" --object-store-memory="$store" --num-cpus={cpus} --num-gpus=0 &
started+=($!)"""


@dataclass(frozen=True, kw_only=True)
class Slurm(NodeGroups):
    """A script for sbatch. The numbers of nodes are those that the job gets: Slurm scales nothing while it runs."""

    image: str | None = None
    """Container image that Apptainer runs everything in; default: the Python environment that sbatch is called in."""
    hours: int = 24
    """Time limit of the job; a training that it ends is queued again and resumes."""
    partition: str | None = None
    """Partition of the GPU nodes, or of all if there are none; default: Slurm's own."""
    cpu_partition: str | None = None
    """Partition of the CPU nodes beside GPU nodes; default: Slurm's own."""

    file_name: ClassVar[str] = "rt-pipelines.sbatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hours < 1:
            raise ValueError(f"--hours must be at least 1, got {self.hours}")
        for flag, name in (("--partition", self.partition), ("--cpu-partition", self.cpu_partition)):
            if name is not None and not re.fullmatch(r"[\w.,-]+", name):
                raise ValueError(f"{flag} {name!r} is no name of a partition")
        if self.min_gpu_nodes or self.min_cpu_nodes:
            raise ValueError(
                "a Slurm job has all its nodes from start to end: leave --min-gpu-nodes, --min-cpu-nodes out"
            )

    def render(self) -> str:
        run = '"${in_image[@]}" ' if self.image is not None else ""
        has_gpus = self.gpu_nodes > 0
        here = "" if self.image is not None else " Activate the environment of rtp before sbatch."
        head = _HEAD.format(file=self.file_name, environment=here)
        body = _BODY.format(
            in_image=self._image_lines(),
            run=run,
            wait_s=JOIN_S,
            store=self.object_store_bytes,
            head_cpus=self.gpu_node_cpus if has_gpus else self.cpu_node_cpus,
            head_gpus=self.gpus if has_gpus else 0,
            workers="\n".join(self._workers(run)),
        )
        return head + "\n".join(self._directives()) + "\n" + body

    def _directives(self) -> list[str]:
        shared = ["--exclusive", "--ntasks-per-node=1"]
        first = [
            f"--job-name={self.name}",
            f"--time={self.hours}:00:00",
            "--signal=B:TERM@300",
            "--requeue",
            "--open-mode=append",
            f"--output={self.name}-%j.log",
        ]
        gpus = [*_partition(self.partition), f"--nodes={self.gpu_nodes}", *shared]
        gpus += [f"--cpus-per-task={self.gpu_node_cpus}", f"--gpus-per-node={self.gpus}"]
        cpu_partition = self.cpu_partition if self.gpu_nodes else self.partition
        cpus = [*_partition(cpu_partition), f"--nodes={self.cpu_nodes}", *shared]
        cpus += [f"--cpus-per-task={self.cpu_node_cpus}"]
        if not self.gpu_nodes:
            return _lines([*first, *cpus])
        return _lines([*first, *gpus]) + (["#SBATCH hetjob", *_lines(cpus)] if self.cpu_nodes else [])

    def _workers(self, run: str) -> list[str]:
        is_mixed = self.gpu_nodes > 0 and self.cpu_nodes > 0
        nodes = self.gpu_nodes or self.cpu_nodes
        cpus, gpus = (self.gpu_node_cpus, self.gpus) if self.gpu_nodes else (self.cpu_node_cpus, 0)
        group, suffix = (" --het-group=0", "_HET_GROUP_0") if is_mixed else ("", "")
        others = _OTHERS.format(group=group, suffix=suffix, run=run, cpus=cpus, gpus=gpus) if nodes > 1 else ""
        own = _CPU_GROUP.format(run=run, cpus=self.cpu_node_cpus) if is_mixed else ""
        return [part for part in (others, own) if part]

    def _image_lines(self) -> str:
        if self.image is None:
            return ""
        return f"in_image=(apptainer exec --nv docker://{self.image})"


def _partition(name: str | None) -> list[str]:
    return [f"--partition={name}"] if name else []


def _lines(options: list[str]) -> list[str]:
    return [f"#SBATCH {option}" for option in options]
