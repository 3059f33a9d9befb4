"""The GPUs of a machine, as nvidia-smi tells them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster import node_info
from cluster.node_info import Gpu

TOLD = """\
0, GPU-1a2b, NVIDIA H200, 143771
1, GPU-3c4d, NVIDIA A100 80GB PCIe, 81920
"""
H200, A100 = Gpu(name="NVIDIA H200", memory=143771 << 20), Gpu(name="NVIDIA A100 80GB PCIe", memory=81920 << 20)


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{TOLD}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize(
    ("visible", "seen"),
    [(None, (H200, A100)), ("", ()), ("1", (A100,)), ("0,1", (H200, A100)), ("GPU-1a", (H200,)), ("7", ())],
)
def test_the_gpus_are_those_that_torch_would_see(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: tuple[Gpu, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("a context was opened"))
    assert node_info._gpus(chosen=visible) == seen


def test_without_the_tool_or_with_a_torch_for_the_cpu_there_are_none(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert node_info._gpus(chosen=None) == ()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert node_info._gpus(chosen=None) == ()
