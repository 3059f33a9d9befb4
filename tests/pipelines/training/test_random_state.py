from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.context import LocalContext
from cluster.state_files import write_files
from pipelines.training.random_state import random_state, restore_random_state


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_random_numbers_go_on_where_they_were(kind: str, tmp_path: Path) -> None:
    """Also from the files of version 0.1."""
    torch.manual_seed(3)
    torch.rand(5)
    saved = random_state(LocalContext("cpu"))
    assert list(saved) == ["random-00000.safetensors"]
    if kind == "pt":
        torch.save({"cpu": torch.get_rng_state()}, tmp_path / "random-00000.pt")
    else:
        write_files(tmp_path, saved)
    undisturbed = torch.rand(5)
    restore_random_state(tmp_path, LocalContext("cpu"))
    assert torch.equal(torch.rand(5), undisturbed)


def test_a_new_rank_keeps_its_fresh_state(tmp_path: Path) -> None:
    torch.manual_seed(3)
    fresh = torch.get_rng_state()
    restore_random_state(tmp_path, LocalContext("cpu"))
    assert torch.equal(torch.get_rng_state(), fresh)
