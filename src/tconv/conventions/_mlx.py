# SPDX-License-Identifier: Apache-2.0
"""MLX: `mlx.core.conv_transpose1d`, `conv_transpose2d`, `conv_transpose3d`."""

from __future__ import annotations

from collections.abc import Iterator

from .._spec import ArgumentError, Ints, Spec, axes_line, integer, integers
from ._convention import Arguments, Convention, Framework, WeightLayout, bare_axes, plain, settle


def mlx(*, input_size: Ints, kernel_size: Ints, stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1, output_padding: Ints = 0,
        groups: int = 1, batch: int = 1, in_channels: int | None = None, out_channels: int | None = None) -> Convention:  # fmt: skip
    """MLX's words: lo = padding, hi = padding - output_padding.

    A crop above K - 1 is refused: MLX then computes something else (0.32). Negative numbers mean what the formula says, but no
    document speaks of them, so that `convert` writes none. The weight is `(Cout, *k, Cin / groups)`; groups
    exist in 1-D and 2-D.

    >>> mlx(input_size=(8, 8), kernel_size=3, stride=2, padding=1, output_padding=1).spec.output_size
    (16, 16)
    """
    axes = bare_axes(input_size, kernel_size=kernel_size, stride=stride, dilation=dilation)
    cut, extra = integers("padding", padding, len(axes)), integers("output_padding", output_padding, len(axes))
    for axis, p, more in zip(axes, cut, extra, strict=True):
        if max(p, p - more) >= axis.extent:
            raise ArgumentError("padding", padding, f"crops more than K - 1 = {axis.extent - 1}, above which MLX computes something else",
                                axes_line([axis]))  # fmt: skip
    if integer("groups", groups) > 1 and len(axes) == 3:
        raise ArgumentError("groups", groups, "must be 1 in 3-D")
    return settle("mlx", axes, ((p, p - more) for p, more in zip(cut, extra, strict=True)), WeightLayout("O*I", groups=groups, by="O"),
                  "channels_last", groups=groups, batch=batch, in_channels=in_channels, out_channels=out_channels)  # fmt: skip


def _guesses(spec: Spec) -> Iterator[Arguments]:
    if all(lo >= max(hi, 0) for lo, hi in spec.crop):
        yield {
            "stride": plain(spec.stride),
            "padding": plain(lo for lo, _ in spec.crop),
            "dilation": plain(spec.dilation),
            "output_padding": plain(lo - hi for lo, hi in spec.crop),
            "groups": spec.groups,
        }


MLX = Framework(mlx, _guesses, "crops lo = padding, 0 to K - 1, and hi = padding - output_padding, at most lo", groups=True)
