"""Stages `loop`, `loop_sides` and `ray`: `rtp train` on the shipped episodes, frames read and decoded as always.

Beside each training in this process stands the bare loop: the same model, optimizer and batches, which lie on the
device already, without engine, loader, metrics and checkpoints; on a GPU as CUDA graphs of whole steps.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_stages.rt1_step import adam, built, moved, recorded, train_step
from gpu_stages.settings import FRAME_SIZE, SAMPLE, Line, Settings
from gpu_stages.timing import Step, device, free_memory, median_seconds, on_gpu, seconds

from cluster.graph_replay import CudaRecorder

if TYPE_CHECKING:
    from pipelines.config.experiment import Experiment

WARM_UP = 3  # lines of metrics: every shape of batch has come, and is recorded
MEMORY_MB = 64  # of the loader: it cannot keep the decoded frames of so small a data set, as no real one fits either
BATCHES = 8  # of the bare loop, in turn


def loop(settings: Settings) -> Iterator[Line]:
    """Segments of 12, and the bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        store = a_store(folder, settings)
        made = experiment(settings, segment=12)
        rtp_train = trained(made, store, f"{folder}/run")
        yield {"case": "segments", "side": "rtp train", **rtp_train}
        free_memory()
        yield from _compared("segments", made, store, rtp_train)


def loop_sides(settings: Settings) -> Iterator[Line]:
    """Plain windows, and both without CUDA graphs."""
    with tempfile.TemporaryDirectory() as folder:
        store = a_store(folder, settings)
        cases = (("plain", 1, "auto"), ("plain", 1, "off"), ("segments", 12, "off"))
        for case, segment, graphs in cases[:1] if settings.toy else cases:
            made = experiment(settings, segment=segment, cuda_graphs=graphs)
            side = "rtp train" if graphs == "auto" else "rtp train, graphs off"
            rtp_train = trained(made, store, f"{folder}/{case}-{graphs}")
            yield {"case": case, "side": side, **rtp_train}
            free_memory()
            if graphs == "auto":
                yield from _compared(case, made, store, rtp_train)


def ray(settings: Settings) -> Iterator[Line]:
    """Segments of 12 on one Ray worker, and after it in this process."""
    import ray as _ray  # noqa: F401

    from cluster.launch import RayLaunch
    from pipelines.config.experiment import InProcess

    with tempfile.TemporaryDirectory() as folder:
        store = a_store(folder, settings)
        made = experiment(settings, segment=12)
        on_ray = RayLaunch(num_workers=1, use_gpu=on_gpu(), cpus_per_worker=1 if settings.toy else 8)
        rates = {}
        for side, launch in (("ray", on_ray), ("in process", InProcess())):
            line = launched(replace(made, launch=launch), store, f"{folder}/{side.replace(' ', '-')}")
            rates[side] = line["samples_per_s"]
            yield {"case": "segments", "side": side, **line}
        yield {"case": "segments", "of_in_process": rates["ray"] / rates["in process"]}


def _compared(case: str, made: Experiment, store: str, rtp_train: Line) -> Iterator[Line]:
    for line in bare(made, store):
        share = rtp_train["samples_per_s"] / line["samples_per_s"]
        yield {"case": case, **line, "rtp_train_of_this": share}


# --- rtp train ---


def a_store(folder: str, settings: Settings) -> str:
    """Of the shipped episodes; their frames at the size of RT-1's camera."""
    from preprocessing.convert import ConvertConfig, convert

    if settings.toy:
        return convert(str(SAMPLE), folder, ConvertConfig(split="val", encoder="hash", workers=0, limit=6)).store
    config = ConvertConfig(split="train", encoder="hash", workers=0, image_size=FRAME_SIZE, resize="squash")
    return convert(str(SAMPLE), folder, config).store


def experiment(settings: Settings, *, segment: int, cuda_graphs: Any = "auto") -> Experiment:
    from cluster.engine import TorchEngineConfig
    from pipelines.catalogue import load_recipe
    from pipelines.config.experiment import InProcess

    made = load_recipe("rt1_tiny" if settings.toy else "rt1_fractal")
    windows = (12 if settings.toy else 96) if segment > 1 else (4 if settings.toy else 32)
    loop = replace(
        made.loop,
        steps=WARM_UP + 1 if settings.toy else 90,
        log_every=1 if settings.toy else 10,
        checkpoint_every=10**6,
        global_batch=windows,
        micro_batch=windows,
        segment_windows=segment,
        fixed_shapes="on",
    )
    engine = TorchEngineConfig(precision="bf16" if on_gpu() else "fp32", cuda_graphs=cuda_graphs)
    loader = replace(made.loader, decode_threads=2 if settings.toy else 8, prefetch_batches=8, memory_mb=MEMORY_MB)
    return replace(made, engine=engine, launch=InProcess(), loop=loop, loader=loader)


def trained(made: Experiment, store: str, output: str) -> Line:
    """By the training loop in this process."""
    from cluster.context import LocalContext
    from pipelines.train_loop import train
    from pipelines.training.job import TrainJob

    job = TrainJob(experiment=made, stores=(store,), output=output, tracking_uri=_database(output))
    train(LocalContext(device()), job)
    return _speed(output)


def launched(made: Experiment, store: str, output: str) -> Line:
    """As the command does it, wherever the experiment's launch says."""
    from pipelines.train import run_training
    from pipelines.training.job import TrainJob

    run_training(TrainJob(experiment=made, stores=(store,), output=output, tracking_uri=_database(output)))
    return _speed(output)


def _database(output: str) -> str:
    """One for all runs of a stage: a new one takes two seconds to set up."""
    return f"sqlite:///{Path(output).parent}/mlflow.db"


def _speed(output: str) -> Line:
    lines = [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "samples_per_s" in line]
    found: Line = {"lines": len(lines)}
    for key in ("samples_per_s", "frames_per_s", "waiting_share", "image_padding_share", "memory_gb"):
        found[key] = statistics.median(line[key] for line in lines[WARM_UP:])
    return found


# --- the bare loop ---


def bare(made: Experiment, store: str) -> Iterator[Line]:
    """Kernel by kernel, and on a GPU as one CUDA graph for each shape of batch."""
    config, batches = _batches(made, store)
    model: Any = built(config, precision="bf16" if on_gpu() else "as_is").train()
    optimizer = adam(model)
    steps: list[Step] = [lambda batch=batch: train_step(model, optimizer, batch) for batch in batches]
    windows = len(batches[0]["sample_id"])
    for step in steps:
        seconds(step)  # cuDNN prepares each shape
    step_s = median_seconds(lambda: [step() for step in steps], 2) / len(steps)
    yield {"side": "bare", "step_s": step_s, "samples_per_s": windows / step_s}
    if not on_gpu():
        return
    graphs: dict[int, Step] = {}
    recorder = CudaRecorder()
    for step, batch in zip(steps, batches, strict=True):
        images = len(batch["image_frame"])
        graphs[images] = graphs.get(images) or recorded(step, recorder)
    replays = [graphs[len(batch["image_frame"])] for batch in batches]
    step_s = median_seconds(lambda: [replay() for replay in replays], 4) / len(replays)
    yield {"side": "bare, graph", "step_s": step_s, "samples_per_s": windows / step_s, "shapes": len(graphs)}


def _batches(made: Experiment, store: str) -> tuple[Any, list[Any]]:
    """(the resolved model, the first batches that the loader hands over, on the device)."""
    from cluster.context import LocalContext
    from pipelines.training.data import open_reader, resolved, training_contract
    from pipelines.training.fixed_shapes import training_loader
    from preprocessing.store.episode_store import EpisodeStore

    stores, context = [EpisodeStore.open(store)], LocalContext(device())
    made = resolved(made, stores)
    with closing(open_reader(made, stores, training_contract(made, stores), is_training=True)) as reader:
        loader = training_loader(made, reader, context)
        with closing(iter(loader)) as stream:  # type: ignore[type-var]
            batches = [moved(batch) for batch in itertools.islice(stream, BATCHES)]
    return made.model, batches
