"""Modules with the names of torchvision's and timm's efficientnet_b3 and plain forward passes, at rt1_tiny's sizes."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.rt1 import RT1Config
from rt_models.vision.efficientnet import EfficientNetConfig, Stage

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
