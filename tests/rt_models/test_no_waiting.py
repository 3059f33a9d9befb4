"""A training step asks its device nothing: tensors of the meta device have no values, so any question would raise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rt_models.language.answer_loss import plan_answers
from rt_models.rt1 import RT1Config
from rt_models.vision.image_plan import plan_images
from tests.support import rt1_windows
from tests.support.rt2_rows import MINIMAL, make_batch


class NothingFromTheHost(TorchFunctionMode):
    """Inside, no tensor of the device is made of values that lie on the host: the host would wait for such a copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _COPIES and isinstance(result, Tensor) and result.is_meta:
            given = args[1:] if func in (Tensor.new_tensor, Tensor.copy_) else args[:1]
            if not any(isinstance(each, Tensor) and each.is_meta for each in given):
                raise AssertionError(f"{func.__name__} takes values from the host: {given}")
        return result


_COPIES = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor, Tensor.copy_, Tensor.to, Tensor.type_as)


def step_on_meta(model: Any, batch: Mapping[str, Tensor]) -> None:
    """Two steps: in the first, constants may go to the device and stay there."""
    model.to("meta").train()
    on_device = {key: value.to("meta") for key, value in batch.items()}
    model.loss(on_device).backward()
    with NothingFromTheHost():
        model.loss(on_device).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def with_fixed_shapes(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return plan_answers(batch | {"num_images": torch.tensor([len(batch["frames"])], dtype=torch.int32)})


def test_rt1() -> None:
    config = RT1Config.small()
    batch = rt1_windows.make_batch(config, [0, 3, 4, 5], frame_size=(96, 96))
    step_on_meta(config.build(), plan_images(batch, crops=True, capacities=(30,)))


def test_rt2() -> None:
    step_on_meta(MINIMAL.build(), with_fixed_shapes(make_batch(MINIMAL.build_text())))


def test_rt2_without_a_plan_would_be_seen() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        step_on_meta(MINIMAL.build(), make_batch(MINIMAL.build_text()))


def test_a_copy_from_the_host_would_be_seen() -> None:
    x = torch.zeros(2, device="meta")
    for copy in (
        lambda: x.new_tensor([1.0]),
        lambda: torch.zeros(2).to("meta"),
        lambda: torch.tensor(1, device="meta"),
    ):
        with pytest.raises(AssertionError, match="values from the host"), NothingFromTheHost():
            copy()
    with NothingFromTheHost():
        x.to(torch.float64).copy_(x)


@pytest.mark.parametrize("family", ["paligemma", "smolvlm", "qwen2_vl"])
@pytest.mark.parametrize("checkpointing", ["off", "blocks"])
def test_rt2_on_a_pretrained_model(family: str, checkpointing: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra vlm")
    from rt_models.rt2_vlm import RT2VLMConfig
    from tests.support.rt2_folders import FAMILIES

    folder = str(FAMILIES[family](tmp_path))
    config = RT2VLMConfig.paligemma(folder, activation_checkpointing=checkpointing)
    step_on_meta(config.build(), with_fixed_shapes(make_batch(config.build_text())))
