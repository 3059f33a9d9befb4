"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: as many processes as cores run tests

settings.register_profile("rtp", deadline=None)  # a busy machine makes any example slow, and none wrong
settings.load_profile("rtp")

gc.disable()  # until all tests are collected, which imports everything


# Minutes to tens of seconds each: begun last, one of them would keep a single process busy while the others idle.
# Those that wait for Ray stand between those that compute.
LONG_FILES = (
    "cluster/test_launch.py",
    "pipelines/test_train_exactness.py",
    "pipelines/test_interrupts.py",
    "test_gpu_benchmarks.py",
    "pipelines/test_register.py",
    "pipelines/test_tune.py",
    "pipelines/test_demo.py",
    "hosts/test_three_hosts.py",
    "pipelines/test_train.py",
    "tuning/test_tuner.py",
    "pipelines/test_simulate.py",
    "pipelines/test_submit.py",
    "cluster/test_engine.py",
    "hosts/test_listening.py",
    "rt_models/test_rt2_zero.py",
    "pipelines/training/test_remote_reader.py",
    "preprocessing/conversion/test_resume.py",
    "pipelines/evaluation/test_closed_loop.py",
    "pipelines/test_registry_server.py",
    "cluster/test_session.py",
    "cluster/test_storage.py",
    "cluster/test_remote_workers.py",
    "preprocessing/test_tfds_differential.py",
    "pipelines/capacity/test_step_memory.py",
    "rt_models/test_triton_kernels.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Third-party data kept with the tests: Open-X schemas, Bridge episodes, golden logits (tests/data/NOTICE)."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="module", autouse=True)
def no_ray_left() -> Iterator[None]:
    """A Ray that one module's tests started in this process is not the next one's, nor is its SIGTERM handler."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
        signal.signal(signal.SIGTERM, handler)
