"""The Slurm script: shellcheck finds nothing, and under stand-ins for Slurm and Ray it does what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster.templates.slurm import Slurm
from tests.support.linters import linter

SCRIPTS = {
    "mixed": Slurm(gpu_nodes=2, cpu_nodes=4, partition="gpu", cpu_partition="cpu", image="registry/rt:0.1.0"),
    "gpus": Slurm(gpu_nodes=2),
    "one node": Slurm(gpu_nodes=1, gpus=1),
    "cpus": Slurm(gpu_nodes=0, cpu_nodes=3),
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_shellcheck_finds_nothing(script: Slurm) -> None:
    ended = subprocess.run([linter("shellcheck"), "-"], input=script.render(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_nodes_are_asked_for_by_group() -> None:
    first, _, second = SCRIPTS["mixed"].render().partition("#SBATCH hetjob\n")
    assert "#SBATCH --nodes=2\n" in first and "#SBATCH --gpus-per-node=8\n" in first
    assert "#SBATCH --nodes=4\n" in second and "#SBATCH --partition=cpu\n" in second
    assert "hetjob" not in SCRIPTS["gpus"].render() and "gpus-per-node" not in SCRIPTS["cpus"].render()


def test_what_slurm_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="from start to end: leave --min-gpu-nodes"):
        Slurm(min_gpu_nodes=1)
    with pytest.raises(ValueError, match="is no name of a partition"):
        Slurm(partition="gpu\nrm -rf x")
    with pytest.raises(ValueError, match="--hours must be at least 1"):
        Slurm(hours=0)


# --- run under stand-ins: each writes down how it was called, and the ray that blocks blocks ---

_STAND_INS = {
    "ray": 'case "$*" in *health*) grep -q -- --head "$CALLS" || exit 1;; esac; echo "ray $*" >> "$CALLS";'
    ' case "$*" in *--block*) exec sleep 60;; esac',
    "srun": 'echo "srun $*" >> "$CALLS"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "apptainer": 'while [ "${1#docker}" = "$1" ]; do shift; done; shift; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$CALLS"',
    "hostname": 'echo "10.1.2.3 10.9.9.9"',
    "rtp": 'trap "exit 75" TERM; until [ "$(grep -c ^srun "$CALLS")" -ge "$STEPS" ]; do sleep 0.02; done;'
    ' echo "rtp $* at $RAY_ADDRESS" >> "$CALLS"; [ "$1" = fail ] && exit 3; [ "$1" = list ] && exit 0;'
    " sleep 30 & wait",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in _STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NUM_NODES_HET_GROUP_0": "2"}
    slurm |= {"SLURMD_NODENAME": "node1", "STEPS": "0"}
    (tmp_path / "calls").touch()
    return {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), **slurm}


def _started(script: Slurm, environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["bash", "-c", script.render(), "job", *words], env=environment, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("words", "code"), [(("list",), 0), (("fail", "a b"), 3)])
def test_nodes_join_the_head_and_the_commands_exit_code_is_the_jobs(
    words: tuple[str, ...], code: int, environment: dict[str, str]
) -> None:
    assert _started(SCRIPTS["mixed"], environment | {"STEPS": "2"}, *words).wait(timeout=30) == code
    calls = Path(environment["CALLS"]).read_text().splitlines()
    assert calls[0].startswith("ray start --head --block --node-ip-address=10.1.2.3 --port=20042")
    assert calls[1] == "ray health-check --address 10.1.2.3:20042"
    assert f"rtp {' '.join(words)} at 10.1.2.3:20042" in calls
    steps = [call for call in calls if call.startswith("srun")]
    assert any("--het-group=0 --nodes=1 --exclude=node1" in step and "--num-gpus=8" in step for step in steps)
    assert any("--het-group=1" in step and "--num-gpus=0" in step for step in steps)


def test_a_warning_of_slurm_reaches_the_command_and_the_job_is_queued_again(environment: dict[str, str]) -> None:
    job = _started(SCRIPTS["one node"], environment, "train")
    calls = Path(environment["CALLS"])
    deadline = time.monotonic() + 20
    while "rtp train" not in calls.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 75
    assert calls.read_text().splitlines()[-1] == "scontrol requeue 42"


def test_without_a_command_it_says_how_it_is_called(environment: dict[str, str]) -> None:
    job = _started(SCRIPTS["gpus"], environment)
    assert job.wait(timeout=10) == 2 and job.stderr is not None
    assert b"usage: sbatch" in job.stderr.read()
