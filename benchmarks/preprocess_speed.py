"""Steps per second on one core: `rtp preprocess` against tensorflow_datasets, and against the bound of its own I/O.

Pass-through: the whole conversion (frames read through but kept as they are, CRC, Parquet, checksums, statistics,
manifest), and the same with a look at the frames' headers and ends alone, against
`as_dataset(decoders=SkipDecoding)` read in the usual nested loops, step by step through one flat dataset, in batches
of 64, and in batches with the same Parquet columns written. Only the last does the same job; the others write nothing.
`decoded` is what `as_dataset` does unless told otherwise. The bound reads the records, checks their CRC, cuts them
blindly into as many rows and writes these as Parquet: no parsing, no checksum, no columns but one. `hashed` is the
bound with the SHA-256 that a store keeps of each file. Where two numbers of --episodes are given, the time that every
further step takes is told apart from what a conversion takes however little there is to convert.

Resizing: 480x640 to 256x320 with padding and back to JPEG, against the same in TensorFlow ops.

Every side is a process of its own, pinned to the same core; they take turns, round after round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from preprocess_data import write_dataset

from preprocessing.conversion.freed_memory import keep_freed_memory

ROUNDS = 5
_CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PASS_THROUGH = {
    "ours": "rtp preprocess",
    "ends": "rtp preprocess --no-check-frames",
    "bound": "bound: read, CRC, Parquet",
    "hashed": "bound and SHA-256",
    "nested": "as_dataset undecoded, nested loops",
    "flat": "as_dataset undecoded, flat, step by step",
    "batched": "as_dataset undecoded, flat, batches of 64",
    "written": "as_dataset undecoded, batches of 64, written to Parquet",
    "decoded": "as_dataset decoded, nested loops",
    "decoded-batched": "as_dataset decoded, batches of 64",
}
RESIZED = {
    "ours": "rtp preprocess --image-size 256x320",
    "resized": "as_dataset, resize_with_pad, encode_jpeg, batches of 64",
    "resized-only": "as_dataset, resize_with_pad, batches of 64, no JPEG",
}


def main() -> None:
    arguments = _arguments()
    if arguments.side:
        _serve(arguments.side, Path(arguments.source), arguments.size, _CLOCKS[arguments.clock])
        return
    from measure import machine

    print("; ".join(f"{key} {value}" for key, value in machine().items()), f"core {arguments.core}", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results: dict[str, Any] = {
            "pass-through": [_pass_through(arguments, episodes, Path(folder)) for episodes in arguments.episodes]
        }
        if len(arguments.episodes) > 1:
            results["per step"] = _per_step(*results["pass-through"][:2])
        if not arguments.sides:
            results["resize"] = _resize(arguments, Path(folder))
    settings = {key: str(value) for key, value in vars(arguments).items()}
    print(json.dumps({"benchmark": "preprocess_speed", "machine": machine(), "settings": settings, "results": results}))


def _pass_through(arguments: argparse.Namespace, episodes: int, folder: Path) -> dict[str, Any]:
    source = write_dataset(folder / f"small-{episodes}", num_episodes=episodes, num_steps=40, num_shards=4)
    print(f"\npass-through: {episodes} episodes of 40 steps, 256x320, {_megabytes(source)} MB in 4 shards")
    sides = {
        name: text for name, text in PASS_THROUGH.items() if not arguments.sides or name in ("ours", *arguments.sides)
    }
    return {"steps": episodes * 40, **_measure(sides, source, None, arguments)}


def _per_step(few: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """Of each side the microseconds of a further step and the milliseconds of what does not grow, from the medians."""
    results: dict[str, Any] = {}
    for name in PASS_THROUGH:
        if name in few:
            few_s, many_s = (size["steps"] / size[name]["steps_per_s"] for size in (few, many))
            step_s = (many_s - few_s) / (many["steps"] - few["steps"])
            fixed_ms = 1000 * (few_s - step_s * few["steps"])
            results[name] = {"us_per_step": round(step_s * 1e6, 1), "fixed_ms": round(fixed_ms)}
            print(f"  {PASS_THROUGH[name]:56} {step_s * 1e6:7.1f} us for a further step, {fixed_ms:.0f} ms whatever")
    return results


def _resize(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    episodes = max(arguments.episodes[0] // 8, 2)
    source = write_dataset(folder / "large", num_episodes=episodes, num_steps=20, num_shards=2, size=(480, 640))
    print(f"\nresize: {episodes} episodes of 20 steps, 480x640 to 256x320, {_megabytes(source)} MB in 2 shards")
    return _measure(RESIZED, source, "256x320", arguments)


def _measure(sides: dict[str, str], source: Path, size: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps a second of each side, and how many times as fast ours is, as medians over the rounds; of the bound also
    what part of it ours reaches when frames are not read through."""
    workers = {name: _Side(name, source, size, arguments.core, arguments.clock) for name in sides}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):  # the first round warms up
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            rate = workers[name].steps_per_second()
            if number:
                rates[name].append(rate)
    results: dict[str, Any] = {}
    for name, text in sides.items():
        ratios = [ours / other for ours, other in zip(rates["ours"], rates[name], strict=True)]
        results[name] = {"steps_per_s": round(statistics.median(rates[name])), "ours_over": _spread(ratios)}
        low, high = min(ratios), max(ratios)
        print(
            f"  {text:56} {statistics.median(rates[name]):7.0f} steps/s, "
            f"ours {statistics.median(ratios):5.2f} times as fast ({low:.2f} to {high:.2f})"
        )
    for name in ("bound", "hashed"):
        if "ends" in sides and name in sides:
            part = _spread([ends / bound for ends, bound in zip(rates["ends"], rates[name], strict=True)])
            results[name]["reached_by_ends"] = part
            reached = f"reaches {part['median']} ({part['lowest']} to {part['highest']})"
            print(f"  --no-check-frames {reached} of the {sides[name]}")
    for worker in workers.values():
        worker.close()
    return results


class _Side:
    """A process that runs one pass of one side each time it is asked."""

    def __init__(self, name: str, source: Path, size: str | None, core: int, clock: str) -> None:
        command = [
            sys.executable,
            __file__,
            "--side",
            name,
            "--source",
            str(source),
            "--clock",
            clock,
            *(["--size", size] if size else []),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def steps_per_second(self) -> float:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} ended early: run it by hand")  # type: ignore[arg-type]
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


# --- In the process of a side ---


def _serve(name: str, source: Path, size: str | None, clock: Callable[[], float]) -> None:
    once = _passes(name, source, size)
    for _ in sys.stdin:
        began = clock()
        num_steps = once()
        print(json.dumps(num_steps / (clock() - began)), flush=True)


def _passes(name: str, source: Path, size: str | None) -> Callable[[], int]:
    """A function that does one pass and returns the number of steps."""
    import pyarrow

    pyarrow.set_cpu_count(1)
    if name in ("ours", "ends"):
        return lambda: _convert(source, size, check_frames=name == "ours")
    if name in ("bound", "hashed"):
        keep_freed_memory()  # as ours does
        return lambda: _bound(source, is_hashed=name == "hashed")
    return lambda: _tensorflow(name, source)


def _convert(source: Path, size: str | None, *, check_frames: bool) -> int:
    from preprocessing.convert import ConvertConfig, convert

    out = source / "store"
    shutil.rmtree(out, ignore_errors=True)
    return convert(str(source), str(out), ConvertConfig(workers=0, image_size=size, check_frames=check_frames)).steps


def _bound(source: Path, *, is_hashed: bool) -> int:
    """40 rows a record, each a fortieth of its bytes, in the store's row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from preprocessing.store.episode_store import ROW_GROUP_ROWS, HashingFile
    from preprocessing.tfds.tfrecord import Record, read_records

    schema, rows = pa.schema({"image": pa.binary()}), 0
    for number, path in enumerate(sorted(source.glob("*.tfrecord-*"))):
        pending: list[bytes] = []
        with (
            path.open("rb") as file,
            (source / f"bound-{number}.parquet").open("wb") as out,
            pq.ParquetWriter(
                pa.PythonFile(HashingFile(out), mode="w") if is_hashed else out.name,
                schema,
                compression="NONE",
                use_dictionary=False,
                write_statistics=False,
            ) as writer,
        ):
            for record in read_records(file, path.stat().st_size):
                assert isinstance(record, Record)
                length = -(-len(record.payload) // 40)
                pending += [record.payload[place : place + length] for place in range(0, len(record.payload), length)]
                if len(pending) >= ROW_GROUP_ROWS:
                    table = pa.table({"image": pa.array(pending[:ROW_GROUP_ROWS], pa.binary())})
                    writer.write_table(table)
                    pending = pending[ROW_GROUP_ROWS:]
                rows += 40
            writer.write_table(pa.table({"image": pa.array(pending, pa.binary())}))
    return rows


def _tensorflow(name: str, source: Path) -> int:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    skip = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    builder: Any = tfds.builder_from_directory(str(source))
    dataset = builder.as_dataset(split="train", decoders=None if name.startswith(("decoded", "resized")) else skip)
    if name in ("nested", "decoded"):
        return sum(1 for episode in tfds.as_numpy(dataset) for _ in episode["steps"])
    steps = dataset.flat_map(lambda episode: episode["steps"])
    if name == "flat":
        return sum(1 for _ in steps.as_numpy_iterator())
    if name.startswith("resized"):
        steps = steps.map(lambda step: _resized(tf, step, encode=name == "resized"))
    batches = steps.batch(64).as_numpy_iterator()
    return _written(source, batches) if name == "written" else sum(len(batch["reward"]) for batch in batches)


def _resized(tf: Any, step: dict[str, Any], *, encode: bool) -> dict[str, Any]:
    image = tf.cast(tf.image.resize_with_pad(step["observation"]["image"], 256, 320), tf.uint8)
    image = tf.io.encode_jpeg(image, quality=95, chroma_downsampling=False) if encode else image
    return {**step, "observation": {**step["observation"], "image": image}}


def _written(source: Path, batches: Iterator[dict[str, Any]]) -> int:
    """The store's columns, as far as they are the same for every dataset, through the store's own writer."""
    import numpy as np
    import pyarrow as pa

    from preprocessing.store.episode_store import HashingFile, ShardWriter, fixed_lists

    rows = 0
    with (source / "written.parquet").open("wb") as file:
        writer = None
        for batch in batches:
            observation, action = batch["observation"], batch["action"]
            columns = {name: pa.array(batch[name]) for name in ("is_first", "is_last", "is_terminal", "reward")}
            columns["image"] = pa.array(list(observation["image"]), pa.binary())
            columns["instruction"] = pa.array(observation["natural_language_instruction"].tolist(), pa.binary())
            columns["action"] = fixed_lists(np.concatenate(list(action.values()), axis=1, dtype=np.float32))
            columns |= {f"source/{name}": fixed_lists(value) for name, value in action.items()}
            proprio = ("base_pose_tool_reached", "gripper_closed", "height_to_bottom")
            columns["proprio"] = fixed_lists(np.concatenate([observation[name] for name in proprio], axis=1))
            table = pa.table(columns)
            writer = writer or ShardWriter(HashingFile(file), table.schema)
            writer.append(table)
            rows += table.num_rows
        assert writer is not None
        writer.__exit__(None)
    return rows


def _spread(values: list[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, 2) for name, value in found.items()}


def _megabytes(source: Path) -> int:
    return sum(path.stat().st_size for path in source.glob("*.tfrecord-*")) // 1_000_000


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "episodes of the pass-through; two numbers tell what grows with them from what does not (default: 208)"
    parser.add_argument("--episodes", type=int, nargs="+", default=[208], help=text)
    text = "time by the clock, or the processor's time alone, as on a busy machine (default: wall)"
    parser.add_argument("--clock", choices=_CLOCKS, default="wall", help=text)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds after the warm-up (default: {ROUNDS})")
    parser.add_argument("--core", type=int, default=0, help="processor that every side is pinned to (default: 0)")
    parser.add_argument("--folder", help="where to put 2 GB of files (default: the system's temporary folder)")
    parser.add_argument(
        "--sides", nargs="+", choices=PASS_THROUGH, help="sides of the pass-through to time, no resizing"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
