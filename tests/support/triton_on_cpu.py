"""Triton kernels without a GPU: run by Triton's interpreter, or compiled for a GPU that is not there."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from rt_models.blocks.triton_kernels import run_kernels

MODULES = (
    "rt_models.blocks.norm_kernels",
    "rt_models.blocks.norm_sum_kernels",
    "rt_models.blocks.depthwise_kernels",
    "rt_models.vision.image_kernels",
)
PROGRAMS = "rt_models.blocks.norm_functions._PROGRAMS", "rt_models.blocks.depthwise._WEIGHT_PROGRAMS"
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


@contextmanager
def interpreted() -> Iterator[None]:
    """Within the block a CPU runs the kernels, instruction by instruction.

    Triton decides at import whether its own functions are interpreted, so it is imported anew too.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, TRITON_INTERPRET="1"))
        stack.enter_context(_forgotten(lambda name: name in MODULES or _is_triton(name)))
        stack.enter_context(run_kernels("on", device="cpu"))
        for name in PROGRAMS:  # sums in few parts: the interpreter takes a millisecond for each program
            stack.enter_context(patch(name, 8))
        yield


def _is_triton(module: str) -> bool:
    return module.partition(".")[0] == "triton" and not module.startswith("triton._C")


@contextmanager
def _forgotten(which: Callable[[str], bool]) -> Iterator[None]:
    """Within the block these modules are imported anew; afterwards they are what they were."""
    before = {name: module for name, module in sys.modules.items() if which(name)}
    _forget(which)
    try:
        yield
    finally:
        _forget(which)
        sys.modules.update(before)
        for name in set(MODULES) & set(before):
            parent, _, last = name.rpartition(".")
            setattr(sys.modules[parent], last, before[name])


def _forget(which: Callable[[str], bool]) -> None:
    for name in [name for name in sys.modules if which(name)]:
        parent, _, last = name.rpartition(".")
        if name in MODULES and hasattr(sys.modules[parent], last):
            delattr(sys.modules[parent], last)
        del sys.modules[name]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A call of a kernel."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    def compiled(self, capability: int, cache: Path) -> Any:
        """For an NVIDIA GPU of this compute capability (90: H100 and H200)."""
        import triton
        from triton import knobs  # type: ignore[attr-defined]
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        constants = {name: value for name, value in self.constants.items() if name in names}
        given = dict(zip(names, self.arguments, strict=False))
        assert set(given) | set(constants) == set(names), "the call does not fit the kernel"
        signature = {name: "constexpr" if name in constants else _type(given[name]) for name in names}
        source = ASTSource(self.kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        options = {name: value for name, value in self.constants.items() if name not in names}
        with patch.object(knobs.cache, "dir", str(cache)):
            return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within the block kernels are not run: each call goes into the list. What they would have computed is not set."""
    launches: list[Launch] = []
    modules = [importlib.import_module(name) for name in MODULES]

    def started(name: str, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        kernel = next(found for module in modules if (found := getattr(module, name, None)) is not None)
        launches.append(Launch(kernel=kernel, arguments=arguments, constants=constants))

    with run_kernels(started, device="cpu"):
        yield launches
