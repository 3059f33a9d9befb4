"""A folded model says what the model says, without a BatchNorm, and leaves the model alone."""

from __future__ import annotations

import copy

import torch

from rt_models.blocks.batch_norm import BatchNorm
from rt_models.rt1 import RT1Config
from rt_models.vision.fuse_batch_norm import fuse_batch_norm
from tests.support.rt1_windows import stirred


@torch.no_grad()
def test_folded_equals_unfolded_and_the_model_stays_as_it_was() -> None:
    model = stirred(RT1Config.tiny().build()).double().eval()
    before = copy.deepcopy(model.state_dict())
    image, embedding = torch.rand(1, 3, 16, 16, 3, dtype=torch.float64), torch.randn(1, 3, 512, dtype=torch.float64)
    small = fuse_batch_norm(model)
    assert not any(isinstance(part, BatchNorm) for part in small.modules())
    torch.testing.assert_close(small(image, embedding), model(image, embedding), atol=1e-10, rtol=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(isinstance(part, BatchNorm) for part in model.modules())
