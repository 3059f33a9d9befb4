"""ImageNet weights: modules with torchvision's and timm's names and plain forward passes, loaded into our backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rt_models.rt1_weights import load_imagenet
from rt_models.vision.efficientnet import EfficientNet
from tests.support.imagenet_nets import CONFIG, Timm, Torchvision
from tests.support.rt1_windows import stirred


def backbone(in_channels: int = 3) -> EfficientNet:
    return CONFIG.build(in_channels=in_channels, image_size=16, embedding_width=512).eval()


@pytest.mark.parametrize("library", [Torchvision, Timm])
@pytest.mark.parametrize("in_channels", [3, 4])
def test_features_are_those_of_the_library(library: type[nn.Module], in_channels: int) -> None:
    theirs, ours = stirred(library()).eval(), backbone(in_channels)
    load_imagenet(ours, theirs.state_dict(), CONFIG)
    image = torch.rand(2, in_channels, 16, 16)
    torch.testing.assert_close(ours(image, torch.randn(2, 512)), theirs(image[:, :3]), rtol=1e-4, atol=1e-5)


def test_an_incomplete_or_foreign_state_dict_is_refused() -> None:
    state = Timm().state_dict()
    del state["blocks.1.0.bn3.bias"]
    state["attention.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing leaves: blocks\.1\.0\.bn3\.bias; left over: attention\.weight"):
        load_imagenet(backbone(), state, CONFIG)


def test_another_width_is_refused_by_name_and_leaves_the_backbone_as_it_was() -> None:
    state, ours = Torchvision().state_dict(), backbone()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    state["features.0.1.weight"] = torch.ones(9)
    with pytest.raises(ValueError, match=r"features\.0\.1\.weight \(9,\) where the model has \(8,\)"):
        load_imagenet(ours, state, CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
