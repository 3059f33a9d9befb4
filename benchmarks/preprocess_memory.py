"""Peak memory of a worker that converts one source shard, as the shard grows 8 times.

Every size is a process of its own; reported is its peak resident set (Linux). Libraries are a good part of it: the
second column is the peak above what the process held before the conversion.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from preprocess_data import write_dataset

EPISODES = (26, 52, 104, 208)  # of 40 steps, about 1.4 MB each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to put 1.2 GB of files (default: the system's temporary folder)")
    parser.add_argument("--source", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.source:
        print(json.dumps(peak_bytes(Path(arguments.source))))
        return
    peaks: dict[int, tuple[int, int]] = {}
    for episodes in EPISODES:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            source = write_dataset(Path(folder), num_episodes=episodes, num_steps=40, num_shards=1)
            command = [sys.executable, __file__, "--source", str(source)]
            peaks[episodes] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            shard = next(source.glob("*.tfrecord-*")).stat().st_size
        whole, above = (peak / 1e6 for peak in peaks[episodes])
        print(
            f"{episodes:4} episodes, {shard / 1e6:5.0f} MB: peak {whole:6.1f} MB, {above:6.1f} above the start",
            flush=True,
        )
    growth = peaks[EPISODES[-1]][0] / peaks[EPISODES[0]][0]
    print(f"8 times the shard, {growth:.3f} times the peak")
    print(json.dumps({"benchmark": "preprocess_memory", "results": {"peaks_bytes": peaks, "growth": round(growth, 3)}}))


def peak_bytes(source: Path) -> tuple[int, int]:
    """(peak, peak above the start) of this process, converting the one shard of `source`."""
    from preprocessing.convert import ConvertConfig, convert

    before = _status_bytes("VmRSS")
    convert(str(source), str(source / "store"), ConvertConfig(workers=0))
    peak = _status_bytes("VmHWM")
    return peak, peak - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system has no /proc/self/status: the measurement needs Linux")


if __name__ == "__main__":
    main()
