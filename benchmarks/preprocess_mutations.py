"""Damaged TFRecords through the whole conversion: no crash, no hang, and every record accounted for.

What preprocess accepted, the audit measures and a full epoch of the loader reads: every window once, all of it finite.

Each case damages one file of a small dataset in one of the ways below and converts it. Damage that keeps the CRCs right
(lying lengths, wrong types, broken messages, broken frames) is what a faulty writer makes; the rest is a faulty disk.
A conversion must end with a verified store whose account adds up, or with one of the sentences of `REFUSALS`.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from preprocess_data import write_dataset
from tensorflow_datasets.proto import tf_example_pb2

from preprocessing.audit.store_audit import audit
from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import Loader, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.tfds.tfrecord import Record, masked_crc32c, read_records
from preprocessing.tfds.writer import frame

REFUSALS = ("not one of", "frames differ in size")
TIMEOUT_S = 60
EPISODES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="damaged files (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    arguments = parser.parse_args()
    began, rng, ends = time.monotonic(), np.random.default_rng(arguments.seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        source = write_dataset(Path(folder), num_episodes=EPISODES, num_steps=3, num_shards=1, size=(16, 16))
        intact = next(source.glob("*.tfrecord-*")).read_bytes()
        for number in range(arguments.count):
            kind = list(KINDS)[number % len(KINDS)]
            ends[kind, _outcome(source, KINDS[kind](intact, rng), check_crc=number % 3 > 0)] += 1
            if sys.stderr.isatty():
                print(f"\r{number + 1} of {arguments.count}", end="", file=sys.stderr)
    for (kind, outcome), count in sorted(ends.items()):
        print(f"{kind:10} {outcome:24} {count:5}")
    seconds = round(time.monotonic() - began, 1)
    print(f"{arguments.count} damaged files in {seconds} s: no crash, no hang, every account adds up")
    print(json.dumps({"benchmark": "preprocess_mutations", "count": arguments.count, "seed": arguments.seed}))


def _outcome(source: Path, data: bytes, *, check_crc: bool) -> str:
    """How the conversion of `data` ended. Raises whatever it should not have raised."""
    next(source.glob("*.tfrecord-*")).write_bytes(data)
    out = source / "out"
    shutil.rmtree(out, ignore_errors=True)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(TIMEOUT_S)
    try:
        summary = convert(str(source), str(out), ConvertConfig(workers=0, check_crc=check_crc))
    except ValueError as error:
        if not str(error).startswith(REFUSALS):
            raise
        return f"refused: {next(text for text in REFUSALS if str(error).startswith(text))}"
    finally:
        signal.alarm(0)
    store = EpisodeStore.open(str(out))
    store.verify()
    quarantined = len(Path(store.root, "quarantine.jsonl").read_text().splitlines())
    assert summary.episodes_in == summary.episodes_out + summary.quarantined >= EPISODES
    assert quarantined == summary.quarantined and summary.steps == store.num_steps
    _require_readable(store)
    return "nothing lost" if not quarantined else "quarantined"


def _require_readable(store: EpisodeStore) -> None:
    """An audit, and an epoch of windows as training reads them."""
    found = {verdict.name: verdict.finding for verdict in audit(store).verdicts}
    assert found["records_hold_one_episode"] == "holds"
    reader = WindowReader([store], [store.dataset.transform], num_steps=4, config=LoaderConfig())
    rows = sum(reader.store_rows)
    loader = Loader(reader, seed=0, lanes=1, global_batch=rows, micro_batch=rows)
    batches = iter(loader)
    batch = next(batches)
    batches.close()  # type: ignore[attr-defined]
    reader.close()
    places = {tuple(place) for place in torch.stack([batch["episode"], batch["step"]], dim=1).tolist()}
    assert len(places) == rows and all(bool(torch.isfinite(batch[key]).all()) for key in ("action", "embedding"))


def _late(*_: object) -> None:
    raise TimeoutError(f"a conversion of a few kilobytes took {TIMEOUT_S} s")


# --- Kinds of damage: (file, random numbers) -> damaged file ---


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _splice(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes inserted, or left out, somewhere."""
    place, length = rng.integers(len(data)), int(rng.integers(1, 5000))
    noise = rng.bytes(length) if rng.random() < 0.5 else b""
    return data[:place] + noise + data[place + (0 if noise else length) :]


def _lie(data: bytes, rng: np.random.Generator) -> bytes:
    """A length that is not true, with a CRC that is."""
    place = _headers(data)[rng.integers(EPISODES)]
    told = int(
        rng.choice([0, 1, 100, len(data), 1 << 31, 1 << 40, (1 << 64) - 1, int(rng.integers(len(data)))]) % 2**64
    )
    length = struct.pack("<Q", told)
    return data[:place] + length + struct.pack("<I", masked_crc32c(length)) + data[place + 12 :]


def _mistype(data: bytes, rng: np.random.Generator) -> bytes:
    """A field whose list is of another kind, length or absent."""

    def change(payload: bytes) -> bytes:
        message: Any = tf_example_pb2.Example.FromString(payload)
        name = sorted(message.features.feature)[rng.integers(len(message.features.feature))]
        feature, count = message.features.feature[name], int(rng.integers(0, 9))
        feature.Clear()
        kind = rng.integers(5)
        if kind == 0:
            feature.int64_list.value.extend(rng.integers(-(2**62), 2**62, count).tolist())
        elif kind == 1:
            feature.float_list.value.extend(rng.choice([0.0, 1.0, np.nan, np.inf, 1e38], count).tolist())
        elif kind == 2:
            feature.bytes_list.value.extend(rng.bytes(int(rng.integers(20))) for _ in range(count))
        elif kind == 3:
            del message.features.feature[name]
        return message.SerializeToString()

    return _with_payload(data, rng, change)


def _remark(data: bytes, rng: np.random.Generator) -> bytes:
    """Marks at random, as of several episodes in a record, and numbers that are huge or not finite."""

    def change(payload: bytes) -> bytes:
        message: Any = tf_example_pb2.Example.FromString(payload)
        for name, feature in message.features.feature.items():
            if rng.random() < 0.3 and feature.int64_list.value:
                feature.int64_list.value[:] = rng.integers(0, 2, len(feature.int64_list.value)).tolist()
            if rng.random() < 0.3 and feature.float_list.value and "embedding" not in name:
                feature.float_list.value[rng.integers(len(feature.float_list.value))] = rng.choice(EXTREMES)
        return message.SerializeToString()

    return _with_payload(data, rng, change)


def _garble(data: bytes, rng: np.random.Generator) -> bytes:
    """A message that is broken, in a record that is not."""
    return _with_payload(data, rng, lambda payload: KINDS_OF_BYTES[rng.integers(3)](payload, rng))


def _spoil(data: bytes, rng: np.random.Generator) -> bytes:
    """A frame that is no image, or not the whole one."""

    def change(payload: bytes) -> bytes:
        message: Any = tf_example_pb2.Example.FromString(payload)
        frames = message.features.feature["steps/observation/image"].bytes_list.value
        place = rng.integers(len(frames))
        frames[place] = [b"", b"\xff\xd8", rng.bytes(50), _cut(frames[place], rng), _flip(frames[place], rng)][
            rng.integers(5)
        ]
        return message.SerializeToString()

    return _with_payload(data, rng, change)


def _with_payload(data: bytes, rng: np.random.Generator, change: Callable[[bytes], bytes]) -> bytes:
    """`data` with one payload changed and framed anew."""
    places = [*_headers(data), len(data)]
    record = rng.integers(EPISODES)
    start, stop = places[record], places[record + 1]
    return data[:start] + frame(change(data[start + 12 : stop - 4])) + data[stop:]


def _headers(data: bytes) -> list[int]:
    return [record.offset for record in read_records(io.BytesIO(data), len(data)) if isinstance(record, Record)]


KINDS_OF_BYTES = (_cut, _flip, _splice)
EXTREMES = (0.0, -1.0, 3e38, 3.4028234e38, -3e38, 1e-45, float("nan"), float("inf"))
KINDS = {
    "cut": _cut,
    "bits": _flip,
    "splice": _splice,
    "length": _lie,
    "types": _mistype,
    "marks": _remark,
    "message": _garble,
    "frame": _spoil,
}

if __name__ == "__main__":
    main()
