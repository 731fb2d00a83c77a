# SPDX-License-Identifier: Apache-2.0
"""LiteRT, once TensorFlow Lite: the operators TRANSPOSE_CONV (2-D) and CONV_3D_TRANSPOSE."""

from __future__ import annotations

from collections.abc import Iterator

from .._spec import ArgumentError, Ints, Spec, axes_line, integers
from ._convention import Arguments, Convention, Framework, WeightLayout, bare_axes, lettered, settle
from ._tensorflow import crop_to, whole_shape


def tflite(*, input_size: Ints, kernel_size: Ints, output_shape: Ints, padding: str = "SAME", stride_d: int = 1, stride_h: int = 1,
           stride_w: int = 1, dilation_d_factor: int = 1, dilation_h_factor: int = 1, dilation_w_factor: int = 1, batch: int | None = None,
           in_channels: int | None = None, out_channels: int | None = None) -> Convention:  # fmt: skip
    """The fields of `TransposeConvOptions` and `Conv3DOptions` in LiteRT's schema, with TensorFlow's SAME and VALID.

    `output_shape`, the operator's first input, is the whole shape, batch and channels included; the spatial sizes alone are
    taken too. Sizes which the forward convolution does not map back are refused, by LiteRT for SAME and in 3-D; a 2-D VALID
    then runs and writes another size. The weight is `(Cout, *k, Cin)` in 2-D and `(*k, Cout, Cin)` in 3-D. A 1-D layer is a 2-D
    layer of height 1. There are no groups.

    >>> tflite(input_size=(8, 8), kernel_size=3, output_shape=(1, 16, 16, 1), stride_h=2, stride_w=2).spec.crop
    ((0, 1), (0, 1))
    """
    rank = len(integers("input_size", input_size))
    words = locals().copy()
    if rank == 1:
        raise ArgumentError("input_size", input_size, "must have two spatial axes or three: a 1-D layer is a 2-D layer of height 1")
    strides, dilations = (lettered(words, name, rank) for name in ("stride_{}", "dilation_{}_factor"))
    axes = bare_axes(input_size, kernel_size=kernel_size, stride=strides, dilation=dilations)
    if rank == 2 and max(dilations) > 1:
        raise ArgumentError("dilation_w_factor", dilation_w_factor, "must be 1 in 2-D: TensorFlow's converter leaves a dilated layer to "
                            "an operator outside LiteRT", axes_line(axes))  # fmt: skip
    sizes, batch, out_channels = whole_shape(output_shape, rank, "channels_last", batch, out_channels)
    if padding not in ("SAME", "VALID"):
        raise ArgumentError("padding", padding, 'must be "SAME" or "VALID"')
    crop = [crop_to(axis, size, padding) for axis, size in zip(axes, sizes, strict=True)]
    return settle("tflite", axes, crop, WeightLayout("O*I" if rank == 2 else "*OI"), "channels_last", batch=batch, in_channels=in_channels,
                  out_channels=out_channels)  # fmt: skip


def _guesses(spec: Spec) -> Iterator[Arguments]:
    letters = "dhw"[-spec.rank :]
    words = {f"stride_{letter}": step for letter, step in zip(letters, spec.stride, strict=True)}
    words |= {f"dilation_{letter}_factor": step for letter, step in zip(letters, spec.dilation, strict=True)}
    for padding in ("SAME", "VALID"):
        yield {"output_shape": (spec.batch, *spec.output_size, spec.out_channels), "padding": padding, **words}


TFLITE = Framework(tflite, _guesses, "crops lo = floor(max(F - O, 0) / 2) by SAME, 0 by VALID, and takes the sizes which the forward "
                   "convolution maps back", ranks=(2, 3), dilates=(3,))  # fmt: skip
