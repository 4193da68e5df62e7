"""Small networks, one per way in which channels can be coupled. `networks()` makes them with random, lively weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(reads: int, makes: int, size: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(reads, makes, size, padding=size // 2, bias=False, **options), nn.BatchNorm2d(makes))


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv_bn(3, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.Sigmoid(),
            nn.Flatten(), nn.Linear(24, 5), nn.GELU(), nn.Linear(5, 3),
        )  # fmt: skip


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv_bn(width, width), conv_bn(width, width)

    def forward(self, x):
        return F.relu(x + self.second(F.relu(self.first(x), inplace=True)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 8), nn.Sequential(Block(8), Block(8))
        self.down, self.last, self.head = nn.Conv2d(8, 10, 1, stride=2), Block(10), nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.last(self.down(self.blocks(F.relu(self.stem(x))))).mean(dim=(2, 3)))


class PaddedBlock(nn.Module):
    """The shortcut without parameters of the CIFAR ResNets: every second pixel, zero channels in front and behind."""

    def __init__(self, reads: int, makes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(reads, makes, stride=2), conv_bn(makes, makes)
        self.pad = (makes - reads) // 2

    def forward(self, x):
        y = self.conv2(F.relu(self.conv1(x)))
        return F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)))


class OptionA(nn.Module):
    """16, 32 and 64 channels, as in ResNet-20, with one block each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = conv_bn(3, 16), Block(16)
        self.two, self.three, self.head = PaddedBlock(16, 32), PaddedBlock(32, 64), nn.Linear(64, 4)

    def forward(self, x):
        return self.head(self.three(self.two(self.one(F.relu(self.stem(x))))).mean(dim=(2, 3)))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1, bias=False) for i in range(2))
        self.head = nn.Linear(14, 3)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x), inplace=True))], 1)
        return self.head(F.relu(self.norms[2](x)).mean(dim=(2, 3)))


class Separable(nn.Module):
    """Depthwise convolutions with BatchNorm, one of them with two outputs per input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.depthwise, self.pointwise = conv_bn(8, 8, groups=8), conv_bn(8, 10, 1)
        self.doubling, self.last = nn.Conv2d(10, 20, 3, groups=10), nn.Conv2d(20, 4, 1)

    def forward(self, x):
        x = F.relu6(self.pointwise(F.relu6(self.depthwise(F.relu6(self.stem(x))))))
        return self.last(F.silu(self.doubling(x))).mean(dim=(2, 3))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.grouped, self.leave = conv_bn(3, 12, 1), conv_bn(12, 8, groups=2), nn.Conv2d(8, 5, 1)
        self.up, self.head = nn.ConvTranspose2d(5, 6, 2, stride=2), nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self.leave(F.relu(self.grouped(F.relu(self.enter(x))))))
        return self.last(F.relu(self.head(F.relu(self.up(x)))))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = conv_bn(3, 8), nn.Conv2d(8, 3, 1)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x):
        x = F.relu(self.conv(x))
        batch, channels, _, _ = x.shape
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3)).view(batch, channels)))))
        return self.after(x * gate.view(batch, channels, 1, 1))


class Normed(nn.Module):
    """LayerNorm mixes; the layer before it cannot go, the others can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.third, self.head = nn.Linear(8, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(F.gelu(self.third(self.norm(self.second(F.gelu(self.first(x)))))))


class Shared(nn.Module):
    """One layer runs twice on its own answer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = F.relu(self.enter(x))
        return self.head(F.relu(self.again(F.relu(self.again(x)))))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.up, self.mix = nn.ConvTranspose2d(8, 5, 2, stride=2), nn.Conv2d(11, 4, 3, padding=1)
        self.act, self.head = nn.PReLU(6), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        high = self.act(self.down1(x))
        return x - self.head(F.relu(self.mix(torch.cat([high, self.up(F.relu(self.down2(high)))], 1))))


class Instance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(2, 6, 3), nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
        self.b, self.bare, self.c = nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4, affine=False), nn.Conv1d(4, 2, 1)

    def forward(self, x):
        return self.c(self.bare(self.b(F.leaky_relu(self.norm(self.a(x))))))


class Halves(nn.Module):
    """Chunks: a gated half that couples channels c and c + 4, then halves that go separate ways."""

    def __init__(self) -> None:
        super().__init__()
        self.gated, self.split = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 1)
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        value, gate = self.gated(x).chunk(2, dim=1)
        left, right = self.split(value * torch.sigmoid(gate)).chunk(2, dim=1)
        return self.head(F.relu(self.left(left) + self.right(right)))


class Shuffled(nn.Module):
    """Pixel shuffle: four channels become one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.body, self.head = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(3, 5, 3), nn.Conv2d(5, 1, 1)

    def forward(self, x):
        return self.head(F.relu(self.body(F.pixel_shuffle(F.relu(self.wide(x)), 2))))


Case = tuple[Callable[[], nn.Module], tuple[int, ...]]

NETWORKS: dict[str, Case] = {
    "plain": (Plain, (2, 3, 8, 8)),
    "mlp": (Mlp, (3, 6)),
    "residual": (Residual, (2, 3, 8, 8)),
    "option-a": (OptionA, (2, 3, 8, 8)),
    "concatenated": (Concatenated, (2, 3, 6, 6)),
    "separable": (Separable, (2, 3, 8, 8)),
    "grouped": (Grouped, (2, 3, 5, 5)),
    "squeeze-excite": (SqueezeExcite, (2, 3, 6, 6)),
    "normed": (Normed, (4, 6)),
    "shared": (Shared, (2, 3, 5, 5)),
    "u-net": (UNet, (2, 1, 8, 8)),
    "instance": (Instance, (2, 2, 12)),
    "halves": (Halves, (2, 3, 6, 6)),
    "shuffled": (Shuffled, (1, 1, 6, 6)),
}


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network in eval mode, with statistics as if trained, and an example; global random state untouched."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = build()
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d)):
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        return net.eval(), torch.randn(shape)
