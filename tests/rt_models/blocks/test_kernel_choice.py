"""Where the Triton kernels run, without Triton."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch

from rt_models.blocks import triton_kernels
from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.blocks.norm_functions import norm_silu
from rt_models.blocks.triton_kernels import kernel_module, run_kernels, runs_kernels

DEVICES = ("cuda", "meta", "cpu")


def taken() -> list[str]:
    """The types of device whose tensors take the kernels' way."""
    return [each for each in DEVICES if runs_kernels(torch.device(each))]


@pytest.mark.parametrize(("has_triton", "by_itself"), [(True, ["cuda"]), (False, [])])
def test_by_themselves_they_run_on_a_gpu_with_triton(
    monkeypatch: pytest.MonkeyPatch, has_triton: bool, by_itself: list[str]
) -> None:
    monkeypatch.setattr(triton_kernels, "_has_triton", lambda: has_triton)
    assert taken() == by_itself
    with run_kernels("off", device="cuda"):
        assert taken() == []
        with run_kernels("auto", device="cuda"), run_kernels("on", device="cpu"):
            assert taken() == [*by_itself, "cpu"]
        assert taken() == []
    assert taken() == by_itself


def test_an_error_inside_ends_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "_has_triton", lambda: True)
    with pytest.raises(KeyError), run_kernels("off", device="cuda"):
        raise KeyError
    assert taken() == ["cuda"]


def test_other_threads_have_the_same_choice() -> None:
    """A backward pass on a GPU runs in threads of its own, and computes checkpointed blocks again there."""
    found: list[str] = []
    with run_kernels("on", device="cpu"):
        thread = threading.Thread(target=lambda: found.extend(taken()))
        thread.start()
        thread.join()
    assert "cpu" in found


def test_triton_is_not_looked_for_where_torch_compile_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(triton_kernels, "_has_triton", lambda: looked.append(True) or True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert taken() == [] and looked == []


def test_a_function_is_called_in_a_kernels_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("norm_kernels", "norm_sum_kernels", "triton"):
        monkeypatch.setitem(sys.modules, name if name == "triton" else f"rt_models.blocks.{name}", None)
    started: list[tuple[str, list[Any], list[str]]] = []
    norm = BatchNormConfig().build(16).train().to("meta")
    x = torch.empty(2, 16, 3, 3, device="meta").to(memory_format=torch.channels_last).requires_grad_()

    def note(name: str, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        started.append((name, [type(each) for each in arguments[:1]], sorted(constants)))

    with run_kernels(note, device="meta"):
        norm_silu(norm, x).sum().backward()
    names = [name for name, _, _ in started]
    assert names == ["sums", "moments", "silu_forward", "silu_reduce", "add_up", "silu_backward"]
    assert started[2] == ("silu_forward", [type(x)], ["BC", "BP", "GATED"])


def test_a_module_is_loaded_for_every_other_device() -> None:
    kernels = kernel_module(lambda: "the module")
    with run_kernels(lambda *_: None, device="meta"), run_kernels("on", device="cpu"):
        assert [kernels(torch.device(each)) == "the module" for each in DEVICES] == [True, False, True]
