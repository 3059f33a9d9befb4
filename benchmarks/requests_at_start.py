"""Requests that a training makes of an S3 server before its first batch, per 1,000 steps of its store.

A real server (`rclone serve s3`) behind a proxy that counts. The store has Bridge's proportions: 35 steps an episode,
2,100 a shard, frames of 128x160. Start and resume of the driver, which checks the store, and of one rank, which opens
it. REPOSITORY names another checkout to measure.
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

SHARDS, EPISODES, STEPS = 4, 60, 35
URL = "s3://bucket/stores"


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
    open_reader(job.experiment, open_stores(job), job.contract).close()


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="requests-"))
    rng = np.random.default_rng(0)
    episodes = [[bridge_episode(rng, STEPS, size=(128, 160)) for _ in range(EPISODES)] for _ in range(SHARDS)]
    source = write_dataset(home / "source", "bridge_dataset", bridge_features(), episodes)
    job = TrainJob(
        experiment=load_recipe("rt1_tiny"), stores=(URL,), output=str(home / "run"), tracking_uri="sqlite:///none"
    )
    found: dict[str, Any] = {"steps": SHARDS * EPISODES * STEPS}
    with counting_server(home) as counts:

        def count(name: str, act: Callable[[], Any]) -> Any:
            fsspec.filesystem("s3").clear_instance_cache()
            counts.clear()
            began = time.perf_counter()
            result = act()
            total = sum(counts.values())
            found[name] = {"requests": total, "per_1000_steps": round(1000 * total / found["steps"], 2)}
            print(f"{name}: {total} requests, {found[name]['per_1000_steps']} per 1,000 steps, ", end="")
            print(f"{time.perf_counter() - began:.1f} s, {dict(counts)}", flush=True)
            return result

        count("conversion", lambda: convert(str(source), URL, ConvertConfig(workers=0)))
        frames_are_noise = [verdict.name for verdict in audit(EpisodeStore.open(URL)).verdicts]

        def start() -> PreparedJob:
            stores = [open_store(path, split="train") for path in job.stores]
            ready = prepared(job, stores)
            check_job(ready, stores, frames_are_noise)
            return ready

        for name in ("start", "resume"):
            ready = count(f"{name}, driver", start)
            count(f"{name}, a rank", partial(opened, ready))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
