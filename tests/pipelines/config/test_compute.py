"""`--device` and `--precision`: what is chosen, what is refused in one sentence, and what a model computes in."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.cli import main
from pipelines.config.compute import Compute


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


@pytest.mark.parametrize(
    ("gpus", "asked", "chosen"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
)
def test_the_device_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch, gpus: int, asked: str, chosen: str) -> None:
    with_gpus(monkeypatch, gpus)
    assert Compute(device=asked).resolved() == torch.device(chosen)


@pytest.mark.parametrize(
    ("gpus", "asked", "precision", "says"),
    [
        (0, "cuda", "fp32", "--device cuda: torch sees no GPU here; give --device cpu, or auto"),
        (1, "cuda:7", "fp32", "--device cuda:7: there is one GPU here, cuda:0"),
        (4, "cuda:7", "fp32", "--device cuda:7: there is 4 GPUs here, cuda:0 to cuda:3"),
        (1, "auto", "bf16", "--precision bf16: Tesla T4 cannot compute in it; give tf32"),
        (0, "gpu", "fp32", "--device gpu: give auto, cpu, cuda or cuda:N, such as cuda:0"),
        (0, "cpu", "tf32", "--precision tf32: a CPU does not compute in it"),
    ],
)
@pytest.mark.parametrize(
    "command", [["evaluate", "run", "--data", "store"], ["register", "run", "--name", "arm"], ["serve", "run"]]
)
def test_what_is_not_there_is_one_sentence_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    gpus: int,
    asked: str,
    precision: str,
    says: str,
) -> None:
    with_gpus(monkeypatch, gpus)
    port = ["--port", "54321"] if command[0] == "serve" else []
    assert main([*command, *port, "--device", asked, "--precision", precision]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("rtp: ") and says in line


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="this torch is built for the CPU alone"):
        Compute(device="cuda").resolved()


def test_a_server_is_told_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Compute(device="cuda:1", precision="bf16")
    assert Compute.of_environment() == Compute()
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    assert Compute.of_environment() == given
    monkeypatch.setenv("RTP_PRECISION", "fp8")
    with pytest.raises(ValueError, match="--precision fp8: give fp32, tf32 or bf16"):
        Compute.of_environment()


def test_a_model_computes_in_the_precision_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    with Compute(device="cpu", precision="bf16").at_work(model):
        assert model(x).dtype == torch.bfloat16
    with Compute(device="cpu").at_work(model):
        assert model(x).dtype == torch.float32
    assert model(x).dtype == torch.float32
    elsewhere = nn.Linear(4, 4, device="meta")
    monkeypatch.setattr(Compute, "resolved", lambda self: torch.device("meta"))
    with Compute().at_work(elsewhere) as device:
        assert device == torch.device("meta") == elsewhere.weight.device


def test_tf32_is_off_on_a_gpu_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[object] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: chosen.append(device) or nullcontext())
    backends: Any = torch.backends
    before, seen = backends.fp32_precision, []
    for precision in ("fp32", "tf32"):
        compute = Compute(device="cuda", precision=precision)  # type: ignore[arg-type]
        with compute.applied(torch.device("cuda", 1)):
            seen.append(backends.fp32_precision)
    assert chosen == [torch.device("cuda", 1)] * 2  # where Triton then launches
    assert seen == ["ieee", "tf32"] and backends.fp32_precision == before
