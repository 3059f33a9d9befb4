"""Shards converted one by one behind a progress bar: in this process, or as tasks of Ray Data on any node."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from preprocessing.conversion.resume import require_claimed, without_verdict
from preprocessing.conversion.shard_report import ShardCounts
from preprocessing.store.file_system import wait_from_the_start
from preprocessing.store.json_files import JsonObject

OBJECT_STORE_MB = 256  # only shard numbers and reports travel through it

_claims_found: set[str] = set()  # by this process

ReachRay = Callable[[], None]
"""Connects this process to Ray. A cluster is joined by whoever knows how (cluster/session.py)."""


def own_ray() -> None:
    """Start a small Ray on this machine, unless one is connected already."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else Ray writes a token that later `ray start`s lack
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else tasks that ask for no GPU see them all
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=OBJECT_STORE_MB << 20,
    )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The conversion that shards belong to: its folder, and the settings that it was begun with. `id` is that of the
    process that converts."""

    root: str
    settings: JsonObject
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


def require_gpu_share(share: float) -> None:
    """Raise ValueError unless tasks can take this share of a GPU, as --gpu-share."""
    if not 0 <= share <= 1:
        raise ValueError(f"--gpu-share must be between 0 and 1, got {share}")


def convert_shards(
    convert_one: Callable[[int], ShardCounts],
    missing: list[int],
    *,
    total: int,
    workers: int | None,
    gpu_share: float = 0.0,
    units: tuple[str, str] = ("episodes", "steps"),
    what: str = "preprocess",
    reach_ray: ReachRay = own_ray,
    claim: Claim | None = None,
) -> None:
    """Convert the shards `missing` of `total` behind a progress bar called `what`; `convert_one` converts a shard.

    gpu_share: share of a GPU that a worker of Ray takes; where no GPU is free, workers compute on CPUs.
    claim: what a task on another node must find there before it converts.
    """
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("shards"), TimeElapsedColumn())
    rate = TextColumn("{task.fields[rate]}")
    began, episodes, steps = time.monotonic(), 0, 0
    with Progress(*columns, TimeRemainingColumn(), rate, console=Console(stderr=True)) as bar:
        line = bar.add_task(what, total=total, completed=total - len(missing), rate="")
        here = workers == 0
        by_ray = partial(_through_ray, convert_one, missing, claim, workers, gpu_share, reach_ray)
        for counts in map(convert_one, missing) if here else by_ray():
            episodes += counts.episodes
            steps += counts.rows
            seconds = time.monotonic() - began
            rates = (f"{n / seconds:.1f} {unit}/s" for n, unit in zip((episodes, steps), units, strict=True))
            bar.update(line, advance=1, rate="  ".join(rates))


def _through_ray(
    convert_one: Callable[[int], ShardCounts],
    missing: list[int],
    claim: Claim | None,
    workers: int | None,
    gpu_share: float,
    reach_ray: ReachRay,
) -> Iterator[ShardCounts]:
    """The counts of the missing shards as they finish. What a user can mend comes back as text, not as a crash."""
    if not missing:
        return
    import ray.data

    without_verdict(reach_ray)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its execution plans; the bar above says what matters
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = ray.data.from_items([{"index": index} for index in missing], override_num_blocks=len(missing))
    most = min(workers or len(missing), len(missing))
    if on_gpus := min(most, _room_on_gpus(gpu_share)):
        # Actors: a task with a GPU gets a process of its own, in which its model would be loaded anew.
        given = {"fn_constructor_args": (convert_one, claim), "num_gpus": gpu_share}
        converted = shards.map(_ShardRow, concurrency=on_gpus, **given)  # type: ignore[arg-type]
    else:
        converted = shards.map(_ShardRow(convert_one, claim), concurrency=most if workers else None)
    for row in converted.iter_rows():
        result = json.loads(row["result"])
        if "error" in result:
            raise (OSError if result["of_the_system"] else ValueError)(result["error"])
        yield ShardCounts(**result)


def _room_on_gpus(share: float) -> int:
    """How many workers of a CPU and this share of a GPU Ray has room for at this moment."""
    import ray

    free = ray.available_resources()
    return min(int(free.get("GPU", 0) / share), int(free.get("CPU", 0))) if share else 0


class _ShardRow:
    """The function that Ray Data maps over shard numbers."""

    def __init__(self, convert_one: Callable[[int], ShardCounts], claim: Claim | None) -> None:
        self._convert_one, self._claim = convert_one, claim

    def __call__(self, row: dict[str, int]) -> dict[str, str]:
        wait_from_the_start()
        try:
            if self._claim is not None and self._claim.id not in _claims_found:
                require_claimed(self._claim.root, self._claim.settings)  # the settings name all shards: once a process
                _claims_found.add(self._claim.id)
            counts = self._convert_one(int(row["index"]))
        except FileNotFoundError as error:
            place = f"{error} (on the node {socket.gethostname()}): every node must see SOURCE and OUT"
            return {"result": json.dumps({"error": place, "of_the_system": True})}
        except (ValueError, OSError) as error:
            return {"result": json.dumps({"error": str(error), "of_the_system": isinstance(error, OSError)})}
        return {"result": json.dumps(asdict(counts))}
