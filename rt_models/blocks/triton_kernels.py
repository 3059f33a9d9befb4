"""Where our Triton kernels run, and how the modules that hold them are loaded.

By itself a kernel runs on a GPU, if Triton is installed; `run_kernels` says otherwise for a while. A function of torch
asks `runs_kernels`, and starts kernels of a module that `kernel_module` loads:

    @kernel_module
    def _kernels() -> Any:
        from rt_models.blocks import norm_kernels  # imports Triton, which is for Linux

        return norm_kernels

    if runs_kernels(x.device):
        _kernels(x.device).sums[grid](x, ...)
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

Started = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Called with the name, the arguments and the constants of a kernel, in the kernel's place."""
Kernels = Literal["auto", "on", "off"]

_chosen: dict[str, Kernels | Started] = {}  # by type of device, for all threads: a backward pass on a GPU has its own

_TILE_C = 64


@contextlib.contextmanager
def run_kernels(how: Kernels | Started, *, device: str) -> Iterator[None]:
    """Inside, tensors on this type of device ("cuda", "cpu", "meta"), in all threads:

    "auto": as outside of any such block. "on": run them whatever the device, as Triton's interpreter does. "off": are
    computed by torch's own operators. A function: take the kernels' way without Triton; it is called where a kernel
    would be, and nothing is computed.

    The choice is global: blocks of two threads must not overlap on one type of device.
    """
    before = _chosen.get(device, "auto")
    _chosen[device] = how
    try:
        yield
    finally:
        _chosen[device] = before


def runs_kernels(device: torch.device) -> bool:
    """Whether tensors on this device take the kernels' way. Where torch.compile traces they do not."""
    if torch.compiler.is_compiling():  # first: it cannot trace how Triton is looked for
        return False
    how = _chosen.get(device.type, "auto")
    return (device.type == "cuda" and _has_triton()) if how == "auto" else how != "off"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def kernel_module(load: Callable[[], Any]) -> Callable[[torch.device], Any]:
    """Of a function that imports a module of kernels: one that gives what is to be started on a device, the module or
    what stands for it."""

    def kernels(device: torch.device) -> Any:
        how = _chosen.get(device.type, "auto")
        return load() if isinstance(how, str) else _StandIn(how)

    return kernels


class _StandIn:
    """For a module of kernels, and for a kernel of it."""

    def __init__(self, started: Started, name: str = "") -> None:
        self._started, self._name = started, name

    def __getattr__(self, name: str) -> _StandIn:
        return _StandIn(self._started, name)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **constants: self._started(self._name, arguments, constants)


def tile_c(channels: int) -> int:
    """Channels of a tile: a power of two."""
    return min(_TILE_C, max(16, 1 << (channels - 1).bit_length()))
