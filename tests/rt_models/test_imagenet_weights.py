"""ImageNet weights: modules with torchvision's and timm's names and plain forward passes, loaded into our backbone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.rt1 import RT1Config
from rt_models.rt1_weights import load_imagenet
from rt_models.vision.efficientnet import EfficientNet, EfficientNetConfig, Stage
from tests.support.rt1_windows import stirred

TINY = RT1Config.tiny().backbone
assert isinstance(TINY, EfficientNetConfig)
CONFIG = replace(TINY, padding="torch", batch_norm=BatchNormConfig(eps=1e-5))


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


class Gate(nn.Module):
    """Squeeze-excite whose two convolutions have the names given."""

    def __init__(self, channels: int, reduced: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(channels, reduced, 1))
        self.add_module(names[1], nn.Conv2d(reduced, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (getattr(self, name) for name in self.names)
        return x * second(nn.functional.silu(first(x.mean((2, 3), keepdim=True)))).sigmoid()


class TorchvisionBlock(nn.Module):
    def __init__(self, channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        width, layers = channels * stage.expansion, []
        if stage.expansion > 1:
            layers.append(nn.Sequential(conv(channels, width, 1), nn.BatchNorm2d(width), nn.SiLU()))
        depthwise = conv(width, width, stage.kernel, stride, groups=width)
        layers.append(nn.Sequential(depthwise, nn.BatchNorm2d(width), nn.SiLU()))
        layers.append(Gate(width, max(1, channels // 4), ("fc1", "fc2")))
        layers.append(nn.Sequential(conv(width, stage.channels, 1), nn.BatchNorm2d(stage.channels)))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class TimmBlock(nn.Module):
    def __init__(self, channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        width = channels * stage.expansion
        depthwise = conv(width, width, stage.kernel, stride, groups=width)
        self.expands, self.residual = stage.expansion > 1, stride == 1 and channels == stage.channels
        if self.expands:
            self.conv_pw, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
            self.conv_dw, self.bn2 = depthwise, nn.BatchNorm2d(width)
            self.conv_pwl, self.bn3 = conv(width, stage.channels, 1), nn.BatchNorm2d(stage.channels)
        else:
            self.conv_dw, self.bn1 = depthwise, nn.BatchNorm2d(width)
            self.conv_pw, self.bn2 = conv(width, stage.channels, 1), nn.BatchNorm2d(stage.channels)
        self.se = Gate(width, max(1, channels // 4), ("conv_reduce", "conv_expand"))

    def forward(self, x: Tensor) -> Tensor:
        silu = nn.functional.silu
        if self.expands:
            y = silu(self.bn2(self.conv_dw(silu(self.bn1(self.conv_pw(x))))))
            y = self.bn3(self.conv_pwl(self.se(y)))
        else:
            y = self.bn2(self.conv_pw(self.se(silu(self.bn1(self.conv_dw(x))))))
        return x + y if self.residual else y


def stages(block: type[nn.Module]) -> list[nn.Sequential]:
    made, channels = [], CONFIG.stem_channels
    for stage in CONFIG.stages:
        blocks = []
        for number in range(stage.num_blocks):
            blocks.append(block(channels, stage, stage.stride if number == 0 else 1))
            channels = stage.channels
        made.append(nn.Sequential(*blocks))
    return made


class Torchvision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first, last = CONFIG.stem_channels, CONFIG.head_channels
        stem = nn.Sequential(conv(3, first, 3, 2), nn.BatchNorm2d(first), nn.SiLU())
        head = nn.Sequential(conv(CONFIG.stages[-1].channels, last, 1), nn.BatchNorm2d(last), nn.SiLU())
        self.features = nn.Sequential(stem, *stages(TorchvisionBlock), head)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(last, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Timm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first, last = CONFIG.stem_channels, CONFIG.head_channels
        self.conv_stem, self.bn1 = conv(3, first, 3, 2), nn.BatchNorm2d(first)
        self.blocks = nn.Sequential(*stages(TimmBlock))
        self.conv_head, self.bn2 = conv(CONFIG.stages[-1].channels, last, 1), nn.BatchNorm2d(last)
        self.classifier = nn.Linear(last, 5)

    def forward(self, x: Tensor) -> Tensor:
        silu = nn.functional.silu
        return silu(self.bn2(self.conv_head(self.blocks(silu(self.bn1(self.conv_stem(x)))))))


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
