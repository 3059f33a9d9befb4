"""The family of pixel_mlp_model.py: pipelines/families/pixel_mlp.py in the checkout that the test makes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipelines.families.windows import WindowCost, WindowFamily
from preprocessing.loading.reader import Batch
from rt_models.pixel_mlp import PixelMLP, PixelMLPConfig, PixelMLPPolicy
from rt_models.spec import DatasetContract


class PixelMLPFamily(WindowFamily[PixelMLPConfig, PixelMLP]):
    config_class, model_class = PixelMLPConfig, PixelMLP
    label = "a pixel MLP"

    def batch_cost(self, config: PixelMLPConfig) -> WindowCost:
        parameters = sum(parameter.numel() for parameter in config.build().parameters())
        return WindowCost(frame_flops=0, window_flops=2 * parameters, random_crop=False, loss_on="last")

    def last_logits(self, model: PixelMLP, batch: Batch) -> Tensor:
        return model.last_logits(batch)

    def policies(self, model: PixelMLP) -> Callable[[DatasetContract], PixelMLPPolicy]:
        return lambda dataset: PixelMLPPolicy(model, dataset)


FAMILY = PixelMLPFamily()
