"""How an RT-1 is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rt_models.blocks.activation_checkpointing import ActivationCheckpointing
from rt_models.blocks.compiled import Compile, require_compilable
from rt_models.blocks.depthwise import DepthwiseKernels
from rt_models.config_checks import require_choices


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the numbers are computed; none of it changes what the model is."""

    precision: Literal["as_is", "bf16"] = "as_is"
    """"bf16": autocast of matrix products and convolutions; the loss stays in float32."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Order in which images and kernels lie in memory. Channels last is faster on CPUs with oneDNN and on GPUs, where
    it also runs the backbone's norms in Triton kernels of ours while training; contiguous leaves them to torch."""
    depthwise: DepthwiseKernels = "auto"
    """Depthwise convolutions on a GPU in channels_last: "auto" in Triton kernels of ours, "cudnn" in the library's. The
    gain of ours is counted, not measured (docs/measured.md)."""
    activation_checkpointing: ActivationCheckpointing = "off"
    """What a block of the backbone keeps for the backward pass: everything; "selective": what its convolutions, matrix
    products and attention return, so that only cheap operations run again; "blocks": its inputs, so that all of it runs
    again."""
    compile: Compile = "off"
    """torch.compile with this backend, block by block: the blocks of the backbone and of the transformer, once for each
    shape. Norms and depthwise convolutions inside are then torch.compile's, and our Triton kernels run in the first and
    last norm of the backbone alone; under inductor dropout draws other numbers. Not with zero.stage 3, nor with
    selective checkpointing."""

    def __post_init__(self) -> None:
        require_choices(self, "compute.")
        require_compilable(self.compile, self.activation_checkpointing, "compute.")
