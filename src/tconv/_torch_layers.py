# SPDX-License-Identifier: Apache-2.0
"""The layer as PyTorch's functions and modules: its names, its constructors, its `state_dict`, its errors, and two kinds of padding more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import _torch_call as call
from ._spec import Ints, Padding, pairs


def conv_transpose1d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
                     output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1) -> Tensor:  # fmt: skip
    """`torch.nn.functional.conv_transpose1d`, on the CPU by tconv.

    input (N, Cin, L) or (Cin, L), weight (Cin, Cout / groups, k), bias (Cout,) or None -> (N, Cout, O) or (Cout, O)

    `padding` may also be "same" (O = L * stride), "valid", or hold a (lo, hi) pair; see `tconv.conv_transpose`. Errors are PyTorch's,
    and `tconv.ArgumentError` where PyTorch has no such padding.

    >>> import torch, tconv.torch
    >>> tconv.torch.conv_transpose1d(torch.ones(1, 2, 8), torch.ones(2, 3, 4), stride=2, padding="same").shape
    torch.Size([1, 3, 16])
    """
    return call.functional(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
                     output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1) -> Tensor:  # fmt: skip
    """`torch.nn.functional.conv_transpose2d`, on the CPU by tconv; channels-last where input or weight is.

    input (N, Cin, H, W) or (Cin, H, W), weight (Cin, Cout / groups, kH, kW), bias (Cout,) or None -> (N, Cout, *O) or (Cout, *O)

    `padding` may also be "same" (O = H * stride, W * stride), "valid", or hold a (lo, hi) pair per axis; errors as in
    `conv_transpose1d`.

    >>> import torch, tconv.torch
    >>> tconv.torch.conv_transpose2d(torch.ones(1, 2, 4, 4), torch.ones(2, 3, 3, 3), stride=2, padding=[(1, 0), (0, 1)]).shape
    torch.Size([1, 3, 8, 8])
    """
    return call.functional(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
                     output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1) -> Tensor:  # fmt: skip
    """`torch.nn.functional.conv_transpose3d`, on the CPU by tconv; channels-last where input or weight is.

    input (N, Cin, D, H, W) or (Cin, D, H, W), weight (Cin, Cout / groups, kD, kH, kW), bias (Cout,) or None -> (N, Cout, *O)

    `padding` and errors as in `conv_transpose2d`.

    >>> import torch, tconv.torch
    >>> tconv.torch.conv_transpose3d(torch.ones(1, 2, 4, 4, 4), torch.ones(2, 3, 2, 2, 2), stride=2).shape
    torch.Size([1, 3, 8, 8, 8])
    """
    return call.functional(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


def words_of(module: Any) -> tuple[Any, ...]:
    """The words of a module, PyTorch's or ours, as calls take them."""
    return module.stride, module.padding, module.output_padding, module.groups, module.dilation


def are_torch(module: Any) -> bool:
    """Whether PyTorch has the words of a module."""
    return call.Words(*words_of(module)).are_torch


class Layer:
    """What ours have before PyTorch's class in their bases: a constructor that takes more paddings, and the call."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    weight: Any
    bias: Any
    _output_padding: Any

    frozen = False  # `fold_` made it: its weight is its own, and nobody writes to it behind PyTorch's back
    activation: call.Activation | None = None  # `fold_` found it behind the layer

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Ints, stride: Ints = 1, padding: Padding = 0,
                 output_padding: Ints = 0, groups: int = 1, bias: bool = True, dilation: Ints = 1, padding_mode: str = "zeros",
                 device: Any = None, dtype: Any = None) -> None:  # fmt: skip
        own = not call.Words(padding=padding).are_torch
        super().__init__(in_channels, out_channels, kernel_size, stride, 0 if own else padding, output_padding, groups, bias, dilation,
                         padding_mode, device, dtype)  # type: ignore[call-arg]  # PyTorch's class comes next  # fmt: skip
        if own:
            self.padding = padding if isinstance(padding, str) else tuple(pairs("padding", padding, len(self.kernel_size)))

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """input (N, Cin, *I) or (Cin, *I) -> (N, Cout, *O) or (Cout, *O); `output_size` as in PyTorch, one int per spatial axis."""
        words: tuple[Any, ...] = words_of(self)
        rank, more = len(self.kernel_size), None
        if output_size is not None and are_torch(self):
            sizes = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, rank, self.dilation)
            words, more = (self.stride, self.padding, 0, self.groups, self.dilation), tuple(n for size in sizes for n in (0, size))
        elif output_size is not None:
            more = call.longer(input, self.weight, words, output_size)
        return call.transposed(rank, input, self.weight, self.bias, words, more, self.frozen, self.activation)

    def extra_repr(self) -> str:
        """PyTorch's line, and what was folded."""
        line: str = super().extra_repr()  # type: ignore[misc]
        return line if self.activation is None else f"{line}, activation={self.activation.name}"


class ConvTranspose1d(Layer, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d`, on the CPU by tconv: same constructor, `state_dict`, results and errors.

    input (N, Cin, L) or (Cin, L) -> (N, Cout, O) or (Cout, O); weight (Cin, Cout / groups, k), bias (Cout,)

    `padding` may also be "same", "valid" or hold a (lo, hi) pair, as in `conv_transpose1d`.

    >>> import torch, tconv.torch
    >>> tconv.torch.ConvTranspose1d(2, 3, 4, stride=2, padding="same")(torch.ones(1, 2, 8)).shape
    torch.Size([1, 3, 16])
    """


class ConvTranspose2d(Layer, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, on the CPU by tconv: same constructor, `state_dict`, results and errors.

    input (N, Cin, H, W) or (Cin, H, W) -> (N, Cout, *O) or (Cout, *O); weight (Cin, Cout / groups, kH, kW), bias (Cout,)

    `padding` may also be "same", "valid" or hold a (lo, hi) pair per axis, as in `conv_transpose2d`.

    >>> import torch, tconv.torch
    >>> layer = tconv.torch.ConvTranspose2d(2, 3, 4, stride=2, padding=1)
    >>> layer(torch.ones(1, 2, 8, 8)).shape, layer(torch.ones(2, 8, 8), output_size=(17, 16)).shape
    (torch.Size([1, 3, 16, 16]), torch.Size([3, 17, 16]))
    """


class ConvTranspose3d(Layer, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d`, on the CPU by tconv: same constructor, `state_dict`, results and errors.

    input (N, Cin, D, H, W) or (Cin, D, H, W) -> (N, Cout, *O) or (Cout, *O); weight (Cin, Cout / groups, kD, kH, kW), bias (Cout,)

    `padding` may also be "same", "valid" or hold a (lo, hi) pair per axis, as in `conv_transpose3d`.

    >>> import torch, tconv.torch
    >>> tconv.torch.ConvTranspose3d(2, 3, 2, stride=2)(torch.ones(1, 2, 4, 4, 4)).shape
    torch.Size([1, 3, 8, 8, 8])
    """


class LazyConvTranspose1d(nn.LazyConvTranspose1d, ConvTranspose1d):
    """`torch.nn.LazyConvTranspose1d`: a `ConvTranspose1d` that takes in_channels from its first input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(nn.LazyConvTranspose2d, ConvTranspose2d):
    """`torch.nn.LazyConvTranspose2d`: a `ConvTranspose2d` that takes in_channels from its first input."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(nn.LazyConvTranspose3d, ConvTranspose3d):
    """`torch.nn.LazyConvTranspose3d`: a `ConvTranspose3d` that takes in_channels from its first input."""

    cls_to_become = ConvTranspose3d
