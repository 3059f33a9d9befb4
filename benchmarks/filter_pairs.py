"""`rtp filter`: pairs a minute with a column of scores, and that a killed run, resumed, ends with the same files.

    python benchmarks/filter_pairs.py --pairs 10000 --kills 4

The whole command is timed, start of Ray included, on photographs' sizes (256x320 JPEG of some 20 KB). Kills are SIGKILL
of the command and of the Ray that it started, after random times.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from preprocessing.store.images import encode_jpeg
from preprocessing.web.convert_web import WebConvertConfig, convert_web

_PER_FILE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = _store(folder, arguments.pairs)
        began = time.monotonic()
        _run(store, folder / "whole", arguments.workers).wait()
        seconds = time.monotonic() - began
        whole = _hashes(folder / "whole")
        print(f"{arguments.pairs} pairs in {seconds:.1f} s: {60 * arguments.pairs / seconds:.0f} a minute", flush=True)
        for number in range(arguments.kills):
            out = folder / f"killed{number}"
            after = random.Random(number).uniform(0.3, 0.95) * seconds
            process = _run(store, out, arguments.workers)
            time.sleep(after)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done = len(list(out.rglob("*-marks.parquet"))), len(list(out.rglob("shard-*.parquet")))
            code = _run(store, out, arguments.workers).wait()
            equal = "equal" if code == 0 and _hashes(out) == whole else "DIFFERENT"
            print(
                f"killed after {after:.1f} s ({done[0]} shards looked at, {done[1]} written), resumed: {equal}",
                flush=True,
            )


def _store(folder: Path, pairs: int) -> str:
    (folder / "pairs").mkdir()
    random_ = np.random.default_rng(0)
    photographs = [random_.integers(0, 256, (8, 10, 3), np.uint8) for _ in range(pairs)]
    for first in range(0, pairs, _PER_FILE):
        rows = [
            {
                "image": encode_jpeg(_photograph(photographs[number]), quality=90),
                "caption": f"a picture of the thing {number}",
                "similarity": float(random_.normal(0.3, 0.05)),
            }
            for number in range(first, min(first + _PER_FILE, pairs))
        ]
        name = f"train-{first // _PER_FILE:05}-of-{-(-pairs // _PER_FILE):05}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), folder / "pairs" / name)
    config = WebConvertConfig(format="parquet", score="similarity", workers=0)
    return convert_web(str(folder / "pairs"), str(folder / "stores"), config).store


def _photograph(blobs: np.ndarray) -> np.ndarray:
    soft = np.asarray(Image.fromarray(blobs).resize((320, 256), Image.Resampling.BICUBIC), np.int16)
    grain = np.random.default_rng(int(blobs[0, 0, 0])).integers(-12, 13, soft.shape)
    return (soft + grain).clip(0, 255).astype(np.uint8)


def _run(store: str, out: Path, workers: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "pipelines", "filter", store, str(out), "--workers", str(workers)]
    return subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file but the page."""
    files = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".html")
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main()
