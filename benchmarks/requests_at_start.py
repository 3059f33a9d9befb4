"""Requests that a training makes of an S3 server before its first batch: those of any store, and per 1,000 steps.

A real server (`rclone serve s3`) behind a proxy that counts. Two stores have Bridge's proportions (35 steps an episode,
2,100 a shard, frames of 128x160) and different numbers of shards: what the larger one costs more is the part that grows
with the steps. Start and resume of the driver, which checks the store, and of one rank, which opens it. REPOSITORY
names another checkout to measure.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

sys.path.insert(0, os.environ.get("REPOSITORY", str(Path(__file__).resolve().parents[1])))

from pipelines.catalogue import load_recipe
from pipelines.training.checks import check_job
from pipelines.training.data import open_reader
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import open_stores, prepared
from preprocessing.audit.store_audit import audit
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import open_store
from tests.support.faulty_proxy import _Handler, faulty_proxy
from tests.support.servers import s3_bucket
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset

SHARDS, EPISODES, STEPS = (2, 6), 60, 35


@contextmanager
def counting_server(home: Path) -> Iterator[Counter[str]]:
    """The environment reaches the server; requests by method."""
    counts: Counter[str] = Counter()
    answer: Callable[[Any], None] = _Handler.do_GET

    def counted(handler: Any) -> None:
        counts[handler.command] += 1
        answer(handler)

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(_Handler, f"do_{method}", counted)
    with s3_bucket(home) as served:
        os.environ.update(served.environment)
        upstream = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
        with faulty_proxy(upstream, lambda path, span: None) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = f"http://{proxy.address}"
            yield counts


def opened(job: PreparedJob) -> None:
    """What a rank does: it looks whether the stores are those of the job, opens them, and gets ready to read."""
    assert all(reference.is_at(reference.path) for reference in job.references)
    open_reader(job.experiment, open_stores(job), job.contract).close()


def started(job: TrainJob, accepted: list[str]) -> PreparedJob:
    """What the driver does."""
    stores = [open_store(path, split="train") for path in job.stores]
    ready = prepared(job, stores)
    check_job(ready, stores, accepted)
    return ready


def measured(home: Path, shards: int, counts: Counter[str]) -> dict[str, int]:
    """Requests by what is done, for a store of so many shards."""
    rng = np.random.default_rng(0)
    episodes = [[bridge_episode(rng, STEPS, size=(128, 160)) for _ in range(EPISODES)] for _ in range(shards)]
    source = write_dataset(home / f"source-{shards}", "bridge_dataset", bridge_features(), episodes)
    found: dict[str, int] = {}

    def count(name: str, act: Callable[[], Any]) -> Any:
        fsspec.filesystem("s3").clear_instance_cache()
        counts.clear()
        began = time.perf_counter()
        result = act()
        found[name] = sum(counts.values())
        print(f"{shards} shards, {name}: {found[name]} requests, {time.perf_counter() - began:.1f} s, {dict(counts)}")
        return result

    url = count("conversion", lambda: convert(str(source), f"s3://bucket/{shards}", ConvertConfig(workers=0))).store
    frames_are_noise = [verdict.name for verdict in audit(EpisodeStore.open(url)).verdicts]
    job = TrainJob(
        experiment=load_recipe("rt1_tiny"), stores=(url,), output=str(home / "run"), tracking_uri="sqlite:///none"
    )
    for name in ("start", "resume"):
        ready = count(f"{name}, driver", partial(started, job, frames_are_noise))
        count(f"{name}, a rank", partial(opened, ready))
    return found


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="requests-"))
    with counting_server(home) as counts:
        small, large = (measured(home, shards, counts) for shards in SHARDS)
    steps = [shards * EPISODES * STEPS for shards in SHARDS]
    parts: dict[str, Any] = {}
    for name in small:
        growth = (large[name] - small[name]) / (steps[1] - steps[0])
        parts[name] = {"fixed": round(small[name] - growth * steps[0], 1), "per_1000_steps": round(1000 * growth, 2)}
        print(f"{name}: {parts[name]['fixed']} of any store, {parts[name]['per_1000_steps']} per 1,000 steps")
    print(json.dumps({"benchmark": "requests_at_start", "steps": steps, "small": small, "large": large, **parts}))


if __name__ == "__main__":
    main()
