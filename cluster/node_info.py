"""What a machine has, and what each node of a cluster has: the findings that `rtp doctor` judges."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.object_store import open_files
from cluster.session import RaySession, connect

PARTS = ("torch", "ray", "deepspeed", "tensorflow-datasets", "pyarrow", "mlflow", "s3fs", "simplejpeg")
SHARED_MEMORY = Path("/dev/shm")
MEMINFO = Path("/proc/meminfo")
PATIENCE_S = 120
"""For every node to answer; the first to be asked installs our packages."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    memory: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Sizes in bytes. `storage` is what is wrong with the run's folder as seen from here; "" if nothing is."""

    host: str
    versions: dict[str, str | None]
    """Of Python and our parts; None for what is not installed."""
    cpu_cores: int
    memory: int
    memory_free: int
    shared_memory: int
    """0 where there is no /dev/shm."""
    gpus: tuple[Gpu, ...]
    storage: str = ""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def examine(output: str, marker: str | None = None) -> Machine:
    """This machine. `marker`: a file that another node left in `output`; None: write one, and remove it.

    With a marker this is a Ray task, which sees no GPU: all GPUs of the node are then counted.
    """
    return Machine(
        host=socket.gethostname(),
        versions={"python": platform.python_version()} | {name: _version(name) for name in PARTS},
        cpu_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_free=_memory_free(),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0,
        gpus=_gpus(chosen=os.environ.get("CUDA_VISIBLE_DEVICES") if marker is None else None),
        storage=_trial(output) if marker is None else _sees(output, marker),
    )


def examine_nodes(address: str, output: str) -> list[Machine]:
    """Every living node of the cluster; each looks for a file that this process puts into `output`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = f".doctor-{uuid.uuid4().hex}"
    with connect(RaySession(address=address, log_to_driver=False)), _left_in(output, marker):
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        probe: Any = ray.remote(examine)
        answers = [probe.options(num_cpus=0, scheduling_strategy=place).remote(output, marker) for place in places]
        return ray.get(answers, timeout=PATIENCE_S)


def disk_free(output: str) -> int | None:
    """Bytes free where `output` is or will be; None for an object store."""
    if "://" in output:
        return None
    return shutil.disk_usage(_existing(Path(output))).free


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


@contextmanager
def _left_in(output: str, marker: str) -> Iterator[None]:
    """A file in `output` for the block. If it cannot be written, every node reports it as missing."""
    files, root = open_files(output)
    made = not files.exists(root)
    with suppress(OSError):
        files.makedirs(root, exist_ok=True)
        files.pipe_file(f"{root}/{marker}", b"here")
    try:
        yield
    finally:
        with suppress(OSError):
            files.rm_file(f"{root}/{marker}")
            if made:
                files.rmdir(root)


def _sees(output: str, marker: str) -> str:
    try:
        files, root = open_files(output)
        return "" if files.exists(f"{root}/{marker}") else f"{output} is another folder here, or cannot be read"
    except Exception as error:  # an object store's library raises kinds of its own
        return f"{output} cannot be reached: {_sentence(error)}"


def _trial(output: str) -> str:
    """Why no file can be written below `output`, else "". The trial file and its folders are removed again."""
    try:
        if "://" not in output:
            with tempfile.TemporaryFile(dir=_existing(Path(output))) as file:
                file.write(b"here")
            return ""
        files, root = open_files(output)
        name = f"{root}/.doctor-{uuid.uuid4().hex}"
        files.pipe_file(name, b"here")
        files.rm_file(name)
        return ""
    except Exception as error:  # as above
        return f"{output} cannot be written: {_sentence(error)}"


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_free() -> int:
    """The bytes that can be taken without swapping, as the kernel says; all bytes if it does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _gpus(chosen: str | None) -> tuple[Gpu, ...]:
    """Those that torch could use, by nvidia-smi: torch itself would open a context on each that it asks.

    chosen: CUDA_VISIBLE_DEVICES; None: all.
    """
    columns = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(columns, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    if torch.version.cuda is None:
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.strip()]
    wanted = None if chosen is None else [each.strip() for each in chosen.split(",") if each.strip()]
    seen = [row for row in rows if wanted is None or any(row[0] == each or row[1].startswith(each) for each in wanted)]
    return tuple(Gpu(name=name, memory=int(mebibytes) * 2**20) for _, _, name, mebibytes in seen)
