# SPDX-License-Identifier: Apache-2.0
"""The three operators by PyTorch's own, for what the core does not compute: other devices, other dtypes, forward-mode derivatives.

PyTorch crops lo = padding and hi = padding - output_padding; any other crop is its full output, cut, with zeros where it is negative.
Every step is one of PyTorch's differentiable operators. Shapes and geometry are those of `_torch_core`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

UP = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_DOWN = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_WEIGHT = {1: torch.nn.grad.conv1d_weight, 2: torch.nn.grad.conv2d_weight, 3: torch.nn.grad.conv3d_weight}


def forward(x: Tensor, w: Tensor, bias: Tensor | None, stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
            groups: int) -> Tensor:  # fmt: skip
    """The layer; x may lack the batch."""
    up, lo, hi = UP[len(stride)], list(crop[::2]), list(crop[1::2])
    extra = [a - b for a, b in zip(lo, hi, strict=True)]
    if all(a >= 0 and 0 <= e < max(s, d) for a, e, s, d in zip(lo, extra, stride, dilation, strict=True)):
        return up(x, w, bias, stride, lo, extra, groups, dilation)
    y = _cut(up(x, w, None, stride, 0, 0, groups, dilation), crop, -1)
    return y if bias is None else y + bias.view(-1, *[1] * len(stride))


def grad_input(grad: Tensor, w: Tensor, size: Sequence[int], stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
               groups: int) -> Tensor:  # fmt: skip
    """The gradient by x: a strided convolution of the full gradient."""
    return _DOWN[len(stride)](_cut(grad, crop, 1), w, None, stride, 0, dilation, groups)


def grad_weight(x: Tensor, grad: Tensor, size: Sequence[int], stride: Sequence[int], crop: Sequence[int], dilation: Sequence[int],
                groups: int) -> Tensor:  # fmt: skip
    """The gradient by w, which is that of the strided convolution of which this layer is the transpose."""
    shape = (x.shape[1], grad.shape[1] // groups, *size)
    return _WEIGHT[len(stride)](_cut(grad, crop, 1), shape, x, stride, 0, dilation, groups)


def _cut(y: Tensor, crop: Sequence[int], sign: int) -> Tensor:
    """Less lo and hi at the ends of every axis (sign -1), or that many zeros more (1)."""
    last_axis_first = [sign * n for lo, hi in zip(crop[-2::-2], crop[::-2], strict=True) for n in (lo, hi)]
    return functional.pad(y, last_axis_first) if any(crop) else y
