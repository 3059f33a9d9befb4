"""A training step asks its device nothing: tensors of the meta device have no values, so any question would raise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rt_models.language.answer_loss import plan_answers
from rt_models.rt1 import RT1Config
from rt_models.vision.image_plan import plan_images
from tests.support import rt1_windows
from tests.support.rt2_rows import MINIMAL, make_batch


def step_on_meta(model: Any, batch: Mapping[str, Tensor]) -> None:
    model.to("meta").train().loss({key: value.to("meta") for key, value in batch.items()}).backward()
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


def test_rt2_on_paligemma(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra vlm")
    from rt_models.rt2_vlm import RT2VLMConfig
    from tests.support.rt2_folders import save_paligemma

    config = RT2VLMConfig.paligemma(str(save_paligemma(tmp_path)))
    step_on_meta(config.build(), with_fixed_shapes(make_batch(config.build_text())))
