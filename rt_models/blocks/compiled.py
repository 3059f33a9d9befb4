"""torch.compile block by block: one program for all blocks of a shape, whatever the size of the batch.

A model repeats its blocks: the 26 of an EfficientNet-B3 have 14 shapes, the layers of a transformer one. Each shape is
compiled when its first block is met, with a batch of any size. Nothing runs uncompiled unnoticed: what cannot be traced
as one graph, and a shape that asks for more graphs than it should, raise an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rt_models.blocks.activation_checkpointing import ActivationCheckpointing

Compile = Literal["off", "inductor", "aot_eager"]
Varying: TypeAlias = Mapping[int | str, tuple[int, ...]]
"""Axes of a block's inputs, by place or name, whose size changes from batch to batch."""

_GRAPHS_OF_A_SHAPE = 32
"""Some each: training and evaluation, with and without gradient, one image or several, the last layer's chosen rows."""


def compile_blocks(blocks: Iterable[nn.Module], backend: str, varying: Varying) -> None:
    """From now on calling one of `blocks` runs a program, which blocks with parameters of the same shapes share.

    A copy of a model is not compiled. Keyword inputs named in `varying` may be tuples of tensors.
    """
    programs: dict[object, Callable[..., Any]] = {}
    for block in blocks:
        shapes = tuple((name, tuple(value.shape)) for name, value in block.state_dict().items())
        if (type(block), shapes) not in programs:
            programs[type(block), shapes] = _program(backend)
        block._compiled_call_impl = partial(_run, programs[type(block), shapes], varying, block)


def require_compilable(compile: Compile, checkpointing: ActivationCheckpointing, prefix: str = "") -> None:
    """Raise ValueError if the two settings do not go together; `prefix` stands before their names."""
    if compile != "off" and checkpointing == "selective":
        raise ValueError(
            f"{prefix}compile {compile} does not go with {prefix}activation_checkpointing selective, which "
            "torch.compile cannot trace: set one of them to off (inductor recomputes what is cheap by itself), or the "
            "latter to blocks"
        )


def has_compiled(model: nn.Module) -> bool:
    """Whether `compile_blocks` was given parts of the model."""
    return any(part._compiled_call_impl is not None for part in model.modules())


def _program(backend: str) -> Callable[..., Any]:
    # dynamo keeps its graphs, and counts them, by code object. With one for each shape no shape counts against another,
    # no model against one before it, and a program is freed with its model.
    call: Any = FunctionType(_call.__code__.replace(), globals())
    compile: Any = torch.compile  # its own types do not know of recompile_limit
    return compile(call, backend=backend, dynamic=False, fullgraph=True, recompile_limit=_GRAPHS_OF_A_SHAPE)


def _call(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    return block._call_impl(*inputs, **named)


def _run(program: Callable[..., Any], varying: Varying, block: nn.Module, *inputs: Any, **named: Any) -> Any:
    if named.get("past_key_values") is not None:
        return block._call_impl(*inputs, **named)  # transformers' cache grows with every token that is decoded
    for place, axes in varying.items():
        given = named.get(place) if isinstance(place, str) else dict(enumerate(inputs)).get(place)
        for each in given if isinstance(given, tuple) else (given,):
            if isinstance(each, Tensor):
                torch._dynamo.maybe_mark_dynamic(each, [axis for axis in axes if axis < each.dim()])
    return program(block, *inputs, **named)
