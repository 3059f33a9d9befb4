"""Triton kernels without a GPU: run by Triton's interpreter, or compiled for a GPU that is not there."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

MODULES = (
    "rt_models.blocks.norm_kernels",
    "rt_models.blocks.norm_sum_kernels",
    "rt_models.blocks.depthwise_kernels",
    "rt_models.vision.image_kernels",
)
ASKED = (
    "rt_models.blocks.norm_functions.runs_kernels",
    "rt_models.blocks.depthwise.runs_kernels",
    "rt_models.vision.image_inputs.runs_kernels",
)
"""Where it is asked whether Triton compiles for a device."""
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
        stack.enter_context(patch.dict(sys.modules))
        stack.enter_context(patch.dict(os.environ, TRITON_INTERPRET="1"))
        for name in list(sys.modules):
            if name.partition(".")[0] == "triton" and not name.startswith("triton._C"):
                del sys.modules[name]
        _imported_anew(stack)
        for name in ASKED:
            stack.enter_context(patch(name, lambda device: True))
        for name in PROGRAMS:  # sums in few parts: the interpreter takes a millisecond for each program
            stack.enter_context(patch(name, 8))
        yield


def _imported_anew(stack: ExitStack) -> list[ModuleType]:
    """The modules of kernels, decorated under the present settings; as before when the stack ends."""
    stack.enter_context(patch.dict(sys.modules))
    for name in MODULES:
        sys.modules.pop(name, None)
    fresh = [importlib.import_module(name) for name in MODULES]
    for module in fresh:
        parent, _, name = module.__name__.rpartition(".")
        stack.enter_context(patch.object(sys.modules[parent], name, module))
    return fresh


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

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **constants: launches.append(
                Launch(kernel=self.kernel, arguments=arguments, constants=constants)
            )

    with ExitStack() as stack:
        for module in _imported_anew(stack):
            for name, value in vars(module).copy().items():
                if type(value).__name__ == "JITFunction":
                    stack.enter_context(patch.object(module, name, Recorder(value)))
        for name in ASKED:
            stack.enter_context(patch(name, lambda device: True))
        yield launches
