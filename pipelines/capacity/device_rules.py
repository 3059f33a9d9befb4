"""What torch does on a GPU or a CPU and not on the meta device, so that the memory of a step can be counted there.

Casts under autocast, the kernel that attention takes, and how convolutions lay out their results. Custom functions cast
nothing by themselves, and the backward pass casts only what checkpointing computes again: both as in torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_NARROW = {
    *(torch.conv1d, torch.conv2d, torch.conv3d, F.linear, torch.einsum),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm),
    *(torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, F.scaled_dot_product_attention),
}
_WIDE = {
    *(F.layer_norm, F.rms_norm, F.group_norm, F.cross_entropy, F.nll_loss, F.mse_loss, F.softplus),
    *(torch.exp, Tensor.exp, torch.log, Tensor.log, torch.rsqrt, Tensor.rsqrt, torch.pow, Tensor.pow, Tensor.__pow__),
    *(torch.reciprocal, Tensor.reciprocal, torch.logsumexp, Tensor.logsumexp),
}
_WIDE_RESULT = {
    *(F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax),
    *(torch.sum, Tensor.sum, torch.prod, Tensor.prod, torch.cumsum, Tensor.cumsum),
}
"""torch.amp's lists of CUDA operations ("Autocast Op Reference"), those that models have. A CPU has the first alone."""


class DeviceRules(TorchFunctionMode):
    """`gpu`: whether tensors of the meta device stand for a GPU's, or for a CPU's. `autocast`: in bf16."""

    def __init__(self, *, gpu: bool, autocast: bool) -> None:
        super().__init__()
        self._gpu, self._autocast = gpu, autocast
        self._cast: dict[int, Tensor] | None = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._autocast and torch.is_grad_enabled():
            if func in _NARROW:
                args, kwargs = tree_map(self._narrow, (args, kwargs))
            elif self._gpu and func in _WIDE:
                args, kwargs = tree_map(_widened, (args, kwargs))
            elif self._gpu and func in _WIDE_RESULT and kwargs.get("dtype") is None and _is_narrow(args[0]):
                kwargs = {**kwargs, "dtype": torch.float32}
        if func is F.scaled_dot_product_attention:
            return (_attention_on_gpu if self._gpu else _attention_on_cpu)(*args, **kwargs)
        return func(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()`, inside. That one would be left to the mode itself, which would then be off in what
        checkpointing computes again, where weights are cast at every use."""
        self._cast = None
        engine: Any = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
        engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)

    def _narrow(self, value: object) -> object:
        if not isinstance(value, Tensor) or not value.is_meta or value.dtype != torch.float32:
            return value
        if self._cast is None or not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._cast:  # a weight is cast once in a forward pass
            self._cast[id(value)] = value.to(torch.bfloat16)
        return self._cast[id(value)]


class ConvolutionLayouts(TorchDispatchMode):
    """A convolution's result lies in memory as its images do; on the meta device it would always be contiguous."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and result.dim() == 4:
            return torch.empty_like(result, memory_format=suggest_memory_format(args[0]))
        return result


def _widened(value: object) -> object:
    return value.float() if _is_narrow(value) else value  # type: ignore[attr-defined]


def _is_narrow(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_meta and value.dtype == torch.bfloat16


def _attention_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention, or with a mask, which that does not take, and in float32 the memory-efficient one."""
    aten, settings = torch.ops.aten, {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if attn_mask is None and query.dtype != torch.float32:
        return aten._scaled_dot_product_flash_attention(query, key, value, **settings)[0]
    bias = attn_mask
    if bias is not None:
        bias = torch.empty_like(bias, dtype=query.dtype) if bias.dtype == torch.bool else bias
        bias = bias.expand(*query.shape[:2], *bias.shape[-2:])
    return aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, **settings)[0]


def _attention_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention, or step by step where there is dropout, which that does not take."""
    if dropout_p or enable_gqa:
        mask = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=enable_gqa, **mask)
    bias = attn_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.empty_like(bias, dtype=query.dtype)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=bias, scale=scale)[0]
