"""Small networks and data for the door's tests; importable as a model factory too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Small(nn.Module):
    """Two convolutions, a residual block, a head: 6 + 5 + 7 units in three groups; (batch, 1, 8, 8) -> (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.bn2 = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.outer = nn.Conv2d(5, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 7, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.outer(torch.relu(self.bn2(self.inner(x)))))
        return self.head(self.drop(torch.relu(self.conv2(x)).mean(dim=(2, 3))))


def small() -> Small:
    """The network with seeded weights, BatchNorm away from the identity, and one module left in another mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Small()
        for norm in (model.bn1, model.bn2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
            norm.running_mean.normal_(std=0.3)
    model.eval()
    model.drop.train()
    return model


def examples(count: int = 24) -> tuple[Tensor, Tensor]:
    """(count, 1, 8, 8) inputs and (count,) classes of four."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 4


def macs(model: nn.Module, inputs: Tensor) -> int:
    """Multiply-adds of one sample, as torch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs[:1])
    return counter.get_total_flops() // 2


def params(model: nn.Module, inputs: Tensor) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
