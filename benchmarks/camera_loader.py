"""Batches of two cameras against decoding both: a main camera of 256x320 and a wrist camera of 128x128.

    python benchmarks/camera_loader.py FOLDER

Full passes over a store of made-up episodes in windows of 6, with bare decoding before and after each: the same JPEGs
of both cameras, read from the same Parquet files, decoded once each in a loop with the same decoder, in as many
threads.
The figure is steps a second of a pass, as a part of bare decoding's; on a machine that others use too, the part by CPU
seconds of the process says more. Exits with 1 below 0.8 of these.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from measure import parser, print_json, ratio, start
from preprocess_data import scene
from tensorflow_datasets.core.features import Dataset, FeaturesDict, Image, Scalar, Tensor, Text

from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import Loader, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from preprocessing.store.robot_inputs import store_inputs
from preprocessing.tfds.writer import RldsWriter, SplitPlan

SIZES = {"image": (256, 320), "wrist": (128, 128)}
CAMERAS = tuple(SIZES)
STEPS, BATCH, DISTINCT = 41, 32, 64
SPEC = """\
name: two_cameras
cameras: {image: observation/image, wrist: observation/wrist_image}
instruction: instruction
control_hz: 5
gripper: none
action: {world_vector: {path: action, unit: m}}
"""


def main() -> int:
    made = parser(__doc__, rounds=3)
    made.add_argument("root", type=Path, help="folder for the store, about 5 MB an episode with its source")
    made.add_argument("--episodes", type=int, default=100)
    made.add_argument("--frames", nargs="+", choices=["distinct", "pool", "windows"], default=["distinct", "pool"])
    arguments = made.parse_args()
    start(arguments)
    store = open_store(arguments.root, arguments.episodes)
    results = {frames: passes(store, frames, arguments) for frames in arguments.frames}
    print_json("camera_loader", arguments, results)
    return int(max(found["cpu_share"]["median"] for found in results.values()) < 0.8)


def open_store(root: Path, episodes: int) -> EpisodeStore:
    """The store below `root`, made unless it is there."""
    if not (root / "store").exists():
        step = {
            "observation": FeaturesDict(
                {field: Image(shape=(None, None, 3), encoding_format="jpeg") for field in ("image", "wrist_image")}
            ),
            "action": Tensor(shape=(3,), dtype=np.float32),
            "instruction": Text(),
            **{name: Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
        }
        writer = RldsWriter(
            name="two_cameras",
            version="1.0.0",
            features=FeaturesDict({"steps": Dataset(step)}),
            description="Made-up episodes.",
        )
        plan = SplitPlan(episodes=made_up(episodes), num_episodes=episodes, num_shards=4)
        folder = writer.write(root / "rlds", {"train": plan})
        (root / "spec.yaml").write_text(SPEC)
        config = ConvertConfig(dataset=str(root / "spec.yaml"), cameras=CAMERAS, encoder="hash", workers=0)
        convert(str(folder), str(root / "store"), config)
    return EpisodeStore.open(str(root / "store"))


def made_up(count: int) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    frames = {role: [scene(random, *size) for _ in range(DISTINCT)] for role, size in SIZES.items()}
    for number in range(count):
        yield {
            "steps": [
                {
                    "observation": {
                        "image": frames["image"][random.integers(DISTINCT)],
                        "wrist_image": frames["wrist"][random.integers(DISTINCT)],
                    },
                    "action": random.normal(0, 0.05, 3).astype(np.float32),
                    "instruction": f"pick object {number % 20}",
                    "is_first": step == 0,
                    "is_last": step == STEPS - 1,
                    "is_terminal": False,
                }
                for step in range(STEPS)
            ]
        }


def passes(store: EpisodeStore, frames: str, arguments: Any) -> dict[str, Any]:
    """Passes over the store with bare decoding around each."""
    config = LoaderConfig(frames=frames, decode_threads=arguments.threads)  # type: ignore[arg-type]
    recipes = {recipe.camera: recipe for recipe in store_inputs(store, cameras=CAMERAS, state=False).cameras}
    reader = WindowReader(
        [store], [store.dataset.transform], num_steps=6, config=config, cameras=CAMERAS, recipes=recipes
    )
    loader = Loader(reader, seed=0, lanes=48, global_batch=2 * BATCH, micro_batch=BATCH)
    batches = store.num_steps // BATCH
    rates, cpu_s, bare = [], [], [bare_steps(store, arguments.threads)]
    with closing(reader), closing(iter(loader)) as stream:  # type: ignore[type-var]
        next(stream)
        decodes = reader.decodes
        for _ in range(arguments.rounds):
            began, cpu_began = time.perf_counter(), time.process_time()
            for _ in itertools.islice(stream, batches):
                pass
            rates.append(batches * BATCH / (time.perf_counter() - began))
            cpu_s.append((time.process_time() - cpu_began) / (batches * BATCH))
            bare.append(bare_steps(store, arguments.threads))
        decodes = (reader.decodes - decodes) / (arguments.rounds * batches * BATCH)
    around = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in itertools.pairwise(bare)]
    share, cpu_share = ratio(rates, [rate for rate, _ in around]), ratio([cpu for _, cpu in around], cpu_s)
    print(
        f"frames={frames:<9} {statistics.median(rates):6.0f} steps/s of both cameras, {share} of bare decoding's "
        f"{statistics.median(rate for rate, _ in bare):.0f} by the clock, {cpu_share} by CPU seconds; decodes per step "
        f"{decodes:.3f}",
        flush=True,
    )
    return {
        "steps_per_s": rates,
        "bare_steps_per_s": [rate for rate, _ in bare],
        "share": share.to_json(),
        "cpu_share": cpu_share.to_json(),
        "decodes_per_step": decodes,
    }


def bare_steps(store: EpisodeStore, threads: int) -> tuple[float, float]:
    """(steps a second, CPU seconds a step) of reading row groups and decoding the frames of both cameras once each, in
    all about 1200 steps."""
    columns = ["image", "image_wrist"]

    def decode(shard: int) -> int:
        count = 0
        for group in range(-(-store.shards[shard].rows // store.shards[shard].row_group_rows)):
            for row in store.read_rows(shard, group, columns).to_pylist():
                for column in columns:
                    decode_image(row[column])
                count += 1
                if count == 1200 // threads:
                    return count
        return count

    began, cpu_began = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(decode, range(threads)))
    return total / (time.perf_counter() - began), (time.process_time() - cpu_began) / total


if __name__ == "__main__":
    raise SystemExit(main())
