# SPDX-License-Identifier: Apache-2.0
"""PyTorch: `torch.nn.ConvTranspose1d`, `2d`, `3d` and `torch.nn.functional.conv_transpose1d`, `2d`, `3d`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._spec import ArgumentError, Axis, Ints, Spec, axes_line, integer, integers
from ._convention import Arguments, Convention, Framework, WeightLayout, bare_axes, below, non_negative, plain, settle


def torch(*, input_size: Ints, kernel_size: Ints, stride: Ints = 1, padding: Ints = 0, output_padding: Ints = 0,
          output_size: Ints | None = None, groups: int = 1, dilation: Ints = 1, batch: int = 1, in_channels: int | None = None,
          out_channels: int | None = None) -> Convention:  # fmt: skip
    """PyTorch's words: lo = padding, hi = padding - output_padding.

    Legal are 0 <= output_padding < max(stride, dilation); `output_size`, an argument of the module's call, wins over
    output_padding and must lie in [O, O + stride - 1] with O the size without output_padding. It may start with batch
    and channels, as `x.size()` does. Strings for `padding` do not exist here.

    >>> torch(input_size=(8, 8), kernel_size=3, stride=2, padding=1, output_padding=1).spec.output_size
    (16, 16)
    """
    axes = bare_axes(input_size, kernel_size=kernel_size, stride=stride, dilation=dilation)
    cut = non_negative("padding", padding, len(axes))
    extra = integers("output_padding", output_padding, len(axes)) if output_size is None else _extra(axes, cut, output_size)
    below("output_padding", extra, axes, "stride", "dilation")
    notes = []
    if any(more >= axis.stride for axis, more in zip(axes, extra, strict=True)):
        notes.append("exported as it is, onnxruntime refuses output_padding >= stride: give ONNX pads_end = padding - output_padding")
    return settle("torch", axes, ((p, p - more) for p, more in zip(cut, extra, strict=True)), WeightLayout("IO*"), "channels_first",
                  groups=integer("groups", groups), batch=batch, in_channels=in_channels, out_channels=out_channels,
                  notes=notes)  # fmt: skip


def _extra(axes: Sequence[Axis], cut: Sequence[int], output_size: Ints) -> list[int]:
    """The output_padding that reaches an asked output_size."""
    sizes = integers("output_size", output_size)
    extra = [size - (a.full - 2 * p) for a, p, size in zip(axes, cut, integers("output_size", sizes[-len(axes) :], len(axes)), strict=True)]
    for axis, p, more in zip(axes, cut, extra, strict=True):
        if not 0 <= more < axis.stride:
            least = axis.full - 2 * p
            raise ArgumentError("output_size", output_size, f"must lie in [{least}, {least + axis.stride - 1}], from the size without "
                                "output_padding to stride - 1 above it", axes_line(axes))  # fmt: skip
    return extra


def _guesses(spec: Spec) -> Iterator[Arguments]:
    yield {
        "kernel_size": plain(spec.kernel_size),
        "stride": plain(spec.stride),
        "padding": plain(lo for lo, _ in spec.crop),
        "output_padding": plain(lo - hi for lo, hi in spec.crop),
        "dilation": plain(spec.dilation),
        "groups": spec.groups,
    }


TORCH = Framework(torch, _guesses, "crops lo = padding and hi = padding - output_padding", groups=True)
