"""The stage `loop` of gpu.py: `rtp train` in this process on the shipped episodes, frames read and decoded as always.

Needs what the loader and the tracking need (pyarrow, simplejpeg, mlflow); without them the stage says so and ends.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).resolve().parents[1] / "examples/metaworld_sample/1.0.0"
WARM_UP = 3  # lines of metrics: every shape of batch has come, and is recorded


def loop(toy: bool, say: Callable[..., None]) -> None:
    """Segments of 12, and plain windows, each with CUDA graphs and without."""
    try:
        from preprocessing.convert import ConvertConfig, convert

        with tempfile.TemporaryDirectory() as folder:
            config = ConvertConfig(split="val", encoder="hash", workers=0)
            store = convert(str(SAMPLE), folder, config).store
            for name, settings in _cases(toy):
                say(stage="loop", case=name, **_trained(store, Path(folder, name.replace(" ", "-")), settings))
    except ImportError as error:
        say(stage="loop", skipped=str(error))


def _cases(toy: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    size = {"global_batch": 48, "micro_batch": 48} if toy else {"global_batch": 96, "micro_batch": 96}
    steps = {"steps": 6, "log_every": 1} if toy else {"steps": 80, "log_every": 10}
    for segment, shape in ((12, size), (1, {name: max(windows // 3, 1) for name, windows in size.items()})):
        for graphs in ("auto", "off"):
            loop = {**steps, **shape, "segment_windows": segment, "checkpoint_every": 10**6, "fixed_shapes": "on"}
            kind = "segments" if segment > 1 else "plain"
            yield f"{kind}, graphs {graphs}", {"toy": toy, "loop": loop, "cuda_graphs": graphs}


def _trained(store: str, output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from cluster.context import LocalContext
    from cluster.engine import TorchEngineConfig
    from pipelines.catalogue import load_recipe
    from pipelines.config.experiment import InProcess
    from pipelines.train_loop import train
    from pipelines.training.job import TrainJob

    made = load_recipe("rt1_tiny" if settings["toy"] else "rt1_fractal")
    engine = TorchEngineConfig(precision="bf16", cuda_graphs=settings["cuda_graphs"])
    made = replace(made, engine=engine, launch=InProcess(), loop=replace(made.loop, **settings["loop"]))
    made = replace(made, loader=replace(made.loader, decode_threads=8, prefetch_batches=8, memory_mb=8192))
    tracking = f"sqlite:///{output}.db"
    train(LocalContext(), TrainJob(experiment=made, stores=(store,), output=str(output), tracking_uri=tracking))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found = {"lines": len(lines)}
    for key in ("samples_per_s", "frames_per_s", "waiting_share", "image_padding_share", "memory_gb"):
        found[key] = statistics.median(line[key] for line in lines[WARM_UP:])
    return found
