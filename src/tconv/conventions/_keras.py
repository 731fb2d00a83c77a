# SPDX-License-Identifier: Apache-2.0
"""Keras 3: `keras.layers.Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._spec import ArgumentError, Axis, Ints, Spec, axes_line
from ._convention import (
    Arguments,
    Convention,
    Crop,
    Framework,
    WeightLayout,
    bare_axes,
    below,
    from_pads,
    non_negative,
    plain,
    same_pads,  # fmt: skip
    settle,
)

WEIGHT = WeightLayout("*OI")


def keras(*, input_size: Ints, kernel_size: Ints, strides: Ints = 1, padding: str = "valid", output_padding: Ints | None = None,
          data_format: str | None = None, dilation_rate: Ints = 1, batch: int = 1, in_channels: int | None = None,
          out_channels: int | None = None) -> Convention:  # fmt: skip
    """Keras's words: "valid" is lo = 0, hi = -output_padding; "same" pads the dilated input and splits that total.

    Without output_padding, "valid" gives (I - 1) * stride + max(K, stride) and "same" gives I * stride; with it,
    (I - 1) * stride + K + output_padding and (I - 1) * stride + K % 2 + output_padding. Layers want output_padding below
    the stride, and refuse a stride above 1 beside a dilation_rate above 1, on whichever axes. There are no groups.

    >>> keras(input_size=(8, 8), kernel_size=4, strides=2, padding="same").spec.crop
    ((1, 1), (1, 1))
    """
    axes = bare_axes(input_size, kernel_size=kernel_size, strides=strides, dilation_rate=dilation_rate)
    extra = None if output_padding is None else non_negative("output_padding", output_padding, len(axes))
    if extra is not None:
        below("output_padding", extra, axes, "stride")
    if not isinstance(padding, str) or padding.lower() not in ("valid", "same"):
        raise ArgumentError("padding", padding, 'must be "valid" or "same"')
    if data_format not in (None, "channels_first", "channels_last"):
        raise ArgumentError("data_format", data_format, 'must be "channels_last" or "channels_first"')
    if max(a.stride for a in axes) > 1 and max(a.dilation for a in axes) > 1:
        raise ArgumentError("dilation_rate", dilation_rate, f"must be 1 where strides={strides!r} are above 1", axes_line(axes))
    notes = []
    if (
        padding.lower() == "same"
        and extra is not None
        and any(a.extent % 2 == 0 and more == 0 for a, more in zip(axes, extra, strict=True))
    ):
        notes.append('the TensorFlow backend refuses padding="same" with output_padding=0 and an even kernel')
    return settle("keras", axes, named_crops(axes, padding, extra), WEIGHT, data_format or "channels_last", batch=batch,
                  in_channels=in_channels, out_channels=out_channels, notes=notes)  # fmt: skip


def named_crops(axes: Sequence[Axis], padding: str, output_padding: Sequence[int] | None) -> list[Crop]:
    """What "valid" and "same" crop; it depends on kernel, stride and dilation alone."""
    rule = _same if padding.lower() == "same" else _valid
    extra: Sequence[int | None] = output_padding or [None] * len(axes)
    return [rule(axis, more) for axis, more in zip(axes, extra, strict=True)]


def _valid(axis: Axis, extra: int | None) -> Crop:
    return 0, -(max(axis.extent, axis.stride) - axis.extent if extra is None else extra)


def _same(axis: Axis, extra: int | None) -> Crop:
    total = axis.extent - 2 + (axis.stride if extra is None else axis.extent % 2 + extra)
    return from_pads(axis, *same_pads(axis, total))


def _guesses(spec: Spec) -> Iterator[Arguments]:
    common = {"kernel_size": plain(spec.kernel_size), "strides": plain(spec.stride), "dilation_rate": plain(spec.dilation)}
    for padding in ("same", "valid"):
        yield common | {"padding": padding}
    yield common | {"padding": "valid", "output_padding": plain(-hi for _, hi in spec.crop)}
    short = (axis.output - (axis.size - 1) * axis.stride - axis.extent % 2 for axis in spec.axes)
    yield common | {"padding": "same", "output_padding": plain(short)}


KERAS = Framework(keras, _guesses, 'crops lo = 0 by "valid", about half of K - stride by "same", and takes output_padding below the stride '
                  "and no stride beside dilation")  # fmt: skip
