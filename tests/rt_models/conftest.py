"""One thread and one seed for every test: small tensors gain nothing from threads, and a failure should come again."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
