# SPDX-License-Identifier: Apache-2.0
"""Four networks in plain `torch.nn`, each with its input and its loss: what their transposed convolutions are there for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

Tensor = torch.Tensor


class Network(NamedTuple):
    """A kind of network: how to build it with a width, and its input for a size."""

    build: Callable[[int], nn.Module]
    inputs: Callable[[int, int], tuple[Tensor, ...]]  # of a width and a size
    small: tuple[int, int]  # a width and a size for tests
    usual: tuple[int, int]  # those of the paper, or of its code; of single inputs, as a user runs them


def dcgan(width: int) -> nn.Module:
    """The generator of DCGAN (arXiv:1511.06434), 64 x 64 pictures from 100 numbers."""
    layers: list[nn.Module] = []
    channels = [100, 8 * width, 4 * width, 2 * width, width, 3]
    for at, (i, o) in enumerate(pairwise(channels)):
        last = at == len(channels) - 2
        layers += [nn.ConvTranspose2d(i, o, 4, 2 if at else 1, 1 if at else 0, bias=False)]
        layers += [nn.Tanh()] if last else [nn.BatchNorm2d(o), nn.ReLU(True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net (arXiv:1505.04597) with padding, and a transposed convolution from each level to the one above."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [width << level for level in range(5)]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, 2) for o in sizes[:-1])
        self.join = nn.ModuleList(_double(2 * o, o) for o in sizes[:-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for level in range(3, -1, -1):
            x = self.join[level](torch.cat([kept[level], self.up[level](x)], 1))
        return self.head(x)


def _double(i: int, o: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(True),
                         nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(True))  # fmt: skip


class HiFiGAN(nn.Module):
    """The generator of HiFi-GAN V1 (arXiv:2010.05646): 80 mel bands to 256 times as many samples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(80, width, 7, padding=3)
        channels = [width >> level for level in range(5)]
        shapes = zip(channels, channels[1:], (16, 16, 4, 4), (8, 8, 2, 2), strict=False)
        self.up = nn.ModuleList(nn.ConvTranspose1d(i, o, k, s, (k - s) // 2) for i, o, k, s in shapes)
        self.blocks = nn.ModuleList(nn.ModuleList(_Residual(o, k) for k in (3, 7, 11)) for o in channels[1:])
        self.last = nn.Conv1d(channels[-1], 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, blocks in zip(self.up, self.blocks, strict=True):
            x = up(nn.functional.leaky_relu(x, 0.1))
            x = sum(block(x) for block in blocks) / len(blocks)
        return torch.tanh(self.last(nn.functional.leaky_relu(x)))


class _Residual(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=d * (kernel - 1) // 2, dilation=d)
                                                 for d in (dilation, 1)) for dilation in (1, 3, 5))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for one, two in self.pairs:
            x = x + two(nn.functional.leaky_relu(one(nn.functional.leaky_relu(x, 0.1)), 0.1))
        return x


class VNet(nn.Module):
    """The decoder of V-Net (arXiv:1606.04797), volumes from its coarsest features and those of every level above."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [width << level for level in range(5)]
        self.up = nn.ModuleList(nn.Sequential(nn.ConvTranspose3d(2 * o, o, 2, 2), nn.BatchNorm3d(o), nn.ReLU()) for o in sizes[:-1])
        self.join = nn.ModuleList(nn.Sequential(nn.Conv3d(2 * o, o, 5, padding=2), nn.BatchNorm3d(o), nn.ReLU()) for o in sizes[:-1])
        self.head = nn.Conv3d(width, 2, 1)

    def forward(self, *features: Tensor) -> Tensor:
        *kept, x = features
        for level in range(3, -1, -1):
            x = self.join[level](torch.cat([kept[level], self.up[level](x)], 1))
        return self.head(x)


NETWORKS = {
    "dcgan": Network(dcgan, lambda width, size: (torch.randn(size, 100, 1, 1),), (4, 4), (64, 16)),
    "unet": Network(UNet, lambda width, size: (torch.randn(1, 3, size, size),), (4, 32), (64, 256)),
    "hifigan": Network(HiFiGAN, lambda width, size: (torch.randn(1, 80, size),), (32, 8), (512, 64)),
    "vnet": Network(VNet, lambda width, size: tuple(torch.randn(1, width << n, *[size >> n] * 3) for n in range(5)), (2, 16), (16, 64)),
}


def loss(y: Tensor) -> Tensor:
    """Of an output, against one that is the same every time: something to train on that depends on every number."""
    target = torch.linspace(-1, 1, y.numel(), device=y.device).sin().view_as(y)
    return (y - target).square().mean()


def train(model: nn.Module, inputs: tuple[Tensor, ...], steps: int, optimiser: Any = None) -> list[float]:
    """The losses of some steps of SGD with momentum."""
    optimiser = optimiser or torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        found = loss(model(*inputs))
        found.backward()
        optimiser.step()
        losses.append(found.item())
    return losses
