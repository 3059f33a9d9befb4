"""Random kills during a conversion: however often it dies, the store that it ends with is the undisturbed one.

A conversion through Ray is begun, and killed at a random moment after it has started to write: the driver, one of the
workers, or the node (its raylet). Ray replaces a worker and the run goes on; after the others the same command is given
again, as a user would. Where a conversion ends between two kills, its store is compared with the undisturbed one byte
by byte, deleted, and the next one begins. Linux only.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from preprocess_data import write_dataset

VICTIMS = {"driver": "", "worker": "ray::Map", "node": "raylet"}  # how the process's command line begins, or its name
START_S, END_S = 120, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="(default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims (default: 0)")
    parser.add_argument("--shards", type=int, default=24, help="source shards of 4 episodes (default: 24)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = write_dataset(
            Path(folder), num_episodes=4 * arguments.shards, num_steps=40, num_shards=arguments.shards
        )
        runs = _Runs(source, Path(folder))
        try:
            runs.finish("undisturbed")
            killed, compared = _kill(runs, arguments.kills, np.random.default_rng(arguments.seed))
        finally:
            runs.end()
    print(f"killed {dict(killed)}; {compared} finished stores, each identical to the undisturbed one")
    settings = vars(arguments)
    print(json.dumps({"benchmark": "preprocess_kills", "settings": settings, "killed": killed, "compared": compared}))


def _kill(runs: _Runs, kills: int, rng: np.random.Generator) -> tuple[Counter[str], int]:
    """(kills of each victim, stores compared)."""
    killed, compared, process = Counter(), 0, None
    while sum(killed.values()) < kills:
        process = process or runs.start("disturbed")
        if _ends_within(process, rng.uniform(0, 4)):
            assert process.returncode == 0, f"the conversion ended with exit code {process.returncode}"
            compared, process = compared + runs.compare(), None
            continue
        victim, family = list(VICTIMS)[rng.integers(len(VICTIMS))], _descendants(process.pid)
        if not _shoot(process, VICTIMS[victim], rng):
            continue
        killed[victim] += 1
        print(f"{sum(killed.values()):3} {victim}, {runs.shards_done('disturbed')} shards done", flush=True)
        if victim != "worker":
            _bury(process, family)
            process = None
    if process is not None:
        process.wait(END_S)
    runs.finish("disturbed")
    return killed, compared + runs.compare()


class _Runs:
    """Conversions of one source below one folder."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, out: str) -> subprocess.Popen[bytes]:
        """A conversion that has begun to write; or has ended."""
        command = [sys.executable, "-m", "pipelines", "preprocess", str(self._source), str(self._folder / out)]
        # Resizing makes a conversion long enough to be killed in the middle.
        command += ["--workers", "2", "--image-size", "128x160"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._processes.append(process)
        done, deadline = self.shards_done(out), time.monotonic() + START_S
        while process.poll() is None and self.shards_done(out) == done and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    def finish(self, out: str) -> None:
        code = self.start(out).wait(END_S)
        assert code == 0, f"the conversion ended with exit code {code}"

    def end(self) -> None:
        """Stop what is still running, after a failure."""
        for process in self._processes:
            process.kill()

    def shards_done(self, out: str) -> int:
        return len(list((self._folder / out).rglob(".progress/[0-9]*[0-9].json")))

    def compare(self) -> int:
        """1, having compared and deleted the disturbed store."""
        ours, theirs = self._folder / "disturbed", self._folder / "undisturbed"
        files = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
        found = sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
        assert files == found, f"files {sorted(set(files) ^ set(found))} are in one store only"
        same, different, errors = filecmp.cmpfiles(ours, theirs, [str(file) for file in files], shallow=False)
        assert len(same) == len(files), f"files {different + errors} differ"
        shutil.rmtree(ours)
        print(f"    a finished store, {len(same)} files identical", flush=True)
        return 1


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _bury(process: subprocess.Popen[bytes], family: list[int]) -> None:
    """Wait until the processes of a killed run are gone; Ray's own watch ends them."""
    process.wait(END_S)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)


def _shoot(process: subprocess.Popen[bytes], kind: str, rng: np.random.Generator) -> bool:
    """Kill the run, or one of its processes of this kind; False where there was none left."""
    found = [process.pid] if not kind else [pid for pid in _descendants(process.pid) if _is(pid, kind)]
    try:
        os.kill(found[rng.integers(len(found))], signal.SIGKILL)
    except (ValueError, ProcessLookupError):
        return False
    return True


def _is(pid: int, kind: str) -> bool:
    """A worker by the task that it is at, the raylet by its program."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return False
    return command.startswith(kind) or command.rpartition("/")[2] == kind


def _descendants(pid: int) -> list[int]:
    """Of a living process, at any depth."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.parent.name))
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found[1:]


if __name__ == "__main__":
    main()
