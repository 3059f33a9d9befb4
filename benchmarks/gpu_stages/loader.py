"""Stage `loader`: what 1, 2, 4 and more cores read and decode, to be set against what the model takes (stage `train`).

Frames of 256x320 pixels of the shipped episodes. They are smooth, so that their JPEG files are smaller than those of
RT-1's camera (some 30 KB): `frame_kb` says how large. The loader may keep few of them decoded.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from gpu_stages.loop import a_store, experiment
from gpu_stages.settings import Line, Settings
from gpu_stages.timing import device


def loader(settings: Settings) -> Iterator[Line]:
    """Batches as `rtp train` gets them: padded to few shapes, on a GPU's machine in pinned memory."""
    cores = sorted(os.sched_getaffinity(0))
    wanted = [count for count in (1, 2, 4, 8, 16, 32) if count < len(cores)] + [len(cores)]
    with tempfile.TemporaryDirectory() as folder:
        store = a_store(folder, settings)
        for case, segment in (("segments", 12), ("plain", 1)):
            for count in wanted[-1:] if settings.toy else wanted:
                os.sched_setaffinity(0, cores[:count])  # threads that begin from now on have it too
                try:
                    line = delivered(settings, store, segment=segment, threads=count)
                finally:
                    os.sched_setaffinity(0, cores)
                yield {"case": case, "cores": count, "of_cores": len(cores), **line}


def delivered(settings: Settings, store: str, *, segment: int, threads: int) -> Line:
    from cluster.context import LocalContext
    from pipelines.training.data import open_reader, resolved, training_contract
    from pipelines.training.fixed_shapes import training_loader
    from preprocessing.store.episode_store import EpisodeStore

    made = experiment(settings, segment=segment)
    made = replace(made, loader=replace(made.loader, decode_threads=threads))
    opened, context = EpisodeStore.open(store), LocalContext(device())
    made = resolved(made, [opened])
    skipped, lasting_s = (2, 0.2) if settings.toy else (12, 4.0)
    batches = images = 0
    with closing(open_reader(made, [opened], training_contract(made, [opened]), is_training=True)) as reader:
        with closing(iter(training_loader(made, reader, context))) as stream:  # type: ignore[type-var]
            for _ in range(skipped):
                next(stream)
            decodes, began = reader.decodes, time.perf_counter()
            while (took := time.perf_counter() - began) < lasting_s:
                images += int(next(stream)["num_images"])
                batches += 1
        decodes = reader.decodes - decodes
    return {
        "windows_per_s": batches * made.loop.micro_batch / took,
        "frames_per_s": images / took,
        "decodes_per_s": decodes / took,
        "frame_kb": opened.num_bytes / opened.num_steps / 1e3,
    }
