"""The public networks the benchmarks prune; key names as in the published checkpoints beside the checkout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def conv3x3(channels_in: int, channels_out: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=bias)


class OptionABlock(nn.Module):
    """Two 3x3 convolutions; the shortcut has no parameters: every second pixel, zero channels on both sides."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.zeros = (channels_out - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.zeros:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet of depth 6 n + 2 on 32 x 32 images (He et al. 2016), option-A shortcuts."""

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, 16), nn.BatchNorm2d(16)
        width = 16
        for stage, channels in enumerate((16, 32, 64), start=1):
            blocks = []
            for b in range((depth - 2) // 6):
                blocks.append(OptionABlock(width, channels, 2 if stage > 1 and b == 0 else 1))
                width = channels
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class DnCNN(nn.Module):
    """Residual denoiser (Zhang et al. 2017): predicts the noise."""

    def __init__(
        self, depth: int = 17, width: int = 64, bn: bool = True, bias: bool = False, channels: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3x3(channels[0], width, bias=bias), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                conv3x3(width, width, bias=bias),
                *([nn.BatchNorm2d(width)] if bn else []),
                nn.ReLU(inplace=True),
            ]
        self.dncnn = nn.Sequential(*layers, conv3x3(width, channels[1], bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.dncnn(x)


class PDColor(nn.Module):
    """Colour denoiser for real noise (Zhou et al. 2020): a small network estimates six maps of the noise's level, which
    a DnCNN reads beside the image; predicts the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.est = DnCNN(3, channels=(3, 6))
        self.net = DnCNN(20, channels=(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, self.est(x).clamp(0, 1)], dim=1))


class DenseLayer(nn.Module):
    """BN-ReLU-1x1-BN-ReLU-3x3, its output concatenated to its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(y)))], dim=1)


class Transition(nn.Module):
    """BN-ReLU-1x1 with half the channels, then average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNetBC(nn.Module):
    """DenseNet-BC on 32 x 32 images (Huang et al. 2017)."""

    def __init__(self, blocks: tuple[int, ...] = (6, 12, 24), growth: int = 12, classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = conv3x3(3, channels)
        self.blocks, self.trans = nn.ModuleList(), nn.ModuleList()
        for b, layers in enumerate(blocks):
            self.blocks.append(nn.Sequential(*[DenseLayer(channels + i * growth, growth) for i in range(layers)]))
            channels += layers * growth
            if b < len(blocks) - 1:
                self.trans.append(Transition(channels))
                channels //= 2
        self.bn, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for b, block in enumerate(self.blocks):
            x = block(x)
            if b < len(self.trans):
                x = self.trans[b](x)
        return self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))


class MnistMLP(nn.Module):
    """784-400-200-100-10, no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 400, bias=False), nn.Linear(400, 200, bias=False)
        self.fc3, self.fc4 = nn.Linear(200, 100, bias=False), nn.Linear(100, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.fc1, self.fc2, self.fc3):
            x = F.relu(layer(x.flatten(1)))
        return self.fc4(x)


def loaded(network: nn.Module, file: str) -> nn.Module:
    """The network with the published weights of that file, in eval mode."""
    network.load_state_dict(torch.load(SHARED / file, weights_only=True))
    return network.eval()


def resnet20() -> nn.Module:
    return loaded(CifarResNet(20), "resnet20_a.pt")


def resnet32() -> nn.Module:
    return loaded(CifarResNet(32), "resnet32_a.pt")


def densenet() -> nn.Module:
    return loaded(DenseNetBC(), "densenet_bc_6_12_24.pt")


def dncnn() -> nn.Module:
    return loaded(DnCNN(), "dncnn_s25.pt")


def dncnn_s15() -> nn.Module:
    return loaded(DnCNN(), "dncnn_s15.pt")


def pd_color_real() -> nn.Module:
    return loaded(PDColor(), "pd_color_real.pt")


def dncnn_nobn() -> nn.Module:
    return loaded(DnCNN(bn=False, bias=True), "dncnn_s25_nobn.pt")


def mlp() -> nn.Module:
    return loaded(MnistMLP(), "mnist_mlp_0.pt")
