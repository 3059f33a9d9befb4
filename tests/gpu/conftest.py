"""What needs a GPU: marked, and skipped with a reason where there is none.

Tests that take the fixture `device` can be tried out on a CPU: RTP_GPU_TESTS=cpu pytest tests/gpu
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

TRIED_ON_CPU = os.environ.get("RTP_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            is_tried = TRIED_ON_CPU and "device" in getattr(item, "fixturenames", ())
            if not (torch.cuda.is_available() or is_tried):
                item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use"))


@pytest.fixture(scope="session")
def device() -> str:
    return "cpu" if TRIED_ON_CPU else "cuda"


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Convolutions and matrix products in float32 and not in TF32."""
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "ieee"
    yield
    torch.backends.fp32_precision = before


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sample's val split as a store."""
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    from preprocessing.convert import ConvertConfig, convert
    from tests.support.command_line import SAMPLE

    config = ConvertConfig(split="val", encoder="hash", workers=0)
    return convert(str(SAMPLE), str(tmp_path_factory.mktemp("store")), config).store
