# SPDX-License-Identifier: Apache-2.0
"""TensorFlow: `tf.nn.conv_transpose`, `tf.nn.conv1d_transpose`, `conv2d_transpose`, `conv3d_transpose`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .._spec import ArgumentError, Axis, Ints, Spec, axes_line, integers, pairs
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, plain, settle

FORMATS = {1: ("NWC", "NCW"), 2: ("NHWC", "NCHW"), 3: ("NDHWC", "NCDHW")}

ON_CPU = (
    "on a CPU, TensorFlow refuses dilations in float64, beside explicit pads (there use VALID and slice), and without oneDNN, "
    "which it turns on by itself on newer processors alone: TF_ENABLE_ONEDNN_OPTS=1 does it anywhere"
)


def tensorflow(*, input_size: Ints, kernel_size: Ints, output_shape: Ints, strides: Ints, padding: str | Sequence[Crop] = "SAME",
               data_format: str | None = None, dilations: Ints | None = None, batch: int | None = None,
               in_channels: int | None = None, out_channels: int | None = None) -> Convention:  # fmt: skip
    """TensorFlow's words: lo = floor(max(F - O, 0) / 2) for SAME, 0 for VALID, the begin of explicit pads; hi = F - lo - O.

    `output_shape` is the whole shape, batch and channels included, as TensorFlow wants it; the spatial sizes alone are
    taken too. The op is the gradient of a convolution and accepts exactly the sizes O which that convolution maps back
    to the input's: ceil(O / stride) = I for SAME, floor((O + begin + end - K) / stride) + 1 = I otherwise. Explicit pads,
    one pair per axis of the data, exist in 2-D only. There are no groups.

    >>> tensorflow(input_size=(8, 8), kernel_size=3, output_shape=(1, 16, 16, 1), strides=2).spec.crop
    ((0, 1), (0, 1))
    """
    rank = len(integers("input_size", input_size))
    last, first = FORMATS.get(rank, ("N*C", "NC*"))
    if data_format not in (None, first, last):
        raise ArgumentError("data_format", data_format, f"must be {last} or {first} for {rank} spatial axes")
    layout = "channels_first" if data_format == first else "channels_last"
    axes = bare_axes(input_size, kernel_size=kernel_size, strides=spatial("strides", strides, rank, layout),
                     dilations=spatial("dilations", 1 if dilations is None else dilations, rank, layout))  # fmt: skip
    sizes, batch, out_channels = whole_shape(output_shape, rank, layout, batch, out_channels)
    pads = _explicit(padding, rank, layout)
    crop = [crop_to(axis, size, pad) for axis, size, pad in zip(axes, sizes, pads, strict=True)]
    notes = [ON_CPU] if any(axis.dilation > 1 for axis in axes) else []
    return settle("tensorflow", axes, crop, WeightLayout("*OI"), layout, batch=batch, in_channels=in_channels, out_channels=out_channels,
                  notes=notes)  # fmt: skip


def crop_to(axis: Axis, size: int, padding: str | Crop) -> Crop:
    """The crop to an asked size, which the forward convolution must map back to the input's."""
    begin, end = (0, 0) if isinstance(padding, str) else padding
    if padding == "SAME":
        rule, back, lo = "ceil(O / stride)", -(-size // axis.stride), max(axis.full - size, 0) // 2
    else:
        rule, back, lo = "floor((O + pads - K) / stride) + 1", (size + begin + end - axis.extent) // axis.stride + 1, begin
    if back != axis.size:
        raise ArgumentError("output_shape", size, f"gives {rule} = {back} with padding={padding!r}, which must be the input's {axis.size}",
                            axes_line([axis]))  # fmt: skip
    return lo, axis.full - lo - size


def _inner(layout: str) -> slice:
    """Where the spatial axes are among all axes of the data."""
    return slice(2, None) if layout == "channels_first" else slice(1, -1)


def spatial(name: str, value: Ints, rank: int, layout: str) -> tuple[int, ...]:
    """One number per spatial axis; a list for all axes of the data must hold 1 for batch and channels."""
    found = integers(name, value)
    if len(found) != rank + 2:
        return integers(name, value, rank)
    if sum(found) - sum(found[_inner(layout)]) != 2:
        raise ArgumentError(name, value, "must be 1 along batch and channels")
    return found[_inner(layout)]


def whole_shape(shape: Ints, rank: int, layout: str, batch: int | None,
                out_channels: int | None) -> tuple[tuple[int, ...], int, int | None]:  # fmt: skip
    """Sizes, batch and channels of output_shape, which must not contradict those given beside it."""
    found = integers("output_shape", shape)
    if len(found) != rank + 2:
        return integers("output_shape", shape, rank), 1 if batch is None else batch, out_channels
    channels = found[1 if layout == "channels_first" else -1]
    if batch not in (None, found[0]) or out_channels not in (None, channels):
        raise ArgumentError("output_shape", shape, f"must hold the batch and the channels given, {batch} and {out_channels}")
    return found[_inner(layout)], found[0], channels


def _explicit(padding: str | Sequence[Crop], rank: int, layout: str) -> list[Any]:
    """The padding of every spatial axis: SAME, VALID, or a pair."""
    if padding in ("SAME", "VALID"):
        return [padding] * rank
    if isinstance(padding, str) or rank != 2:
        raise ArgumentError("padding", padding, 'must be "SAME" or "VALID"; only 2-D takes a list of pairs too')
    found = pairs("padding", padding, 4)
    if min(min(pair) for pair in found) < 0 or sum(map(sum, found)) != sum(map(sum, found[_inner(layout)])):
        raise ArgumentError("padding", padding, "must hold pairs of at least 0, and (0, 0) for batch and channels")
    return found[_inner(layout)]


def _guesses(spec: Spec) -> Iterator[Arguments]:
    common = {"output_shape": (spec.batch, *spec.output_size, spec.out_channels), "strides": plain(spec.stride)}
    dilations = {"dilations": plain(spec.dilation)} if max(spec.dilation) > 1 else {}
    explicit = [((0, 0), *((lo, max(hi, 0)) for lo, hi in spec.crop), (0, 0))] if spec.rank == 2 else []
    for padding in ("SAME", "VALID", *explicit):
        yield common | {"padding": padding} | dilations


TENSORFLOW = Framework(tensorflow, _guesses, "crops lo = floor(max(F - O, 0) / 2) by SAME, 0 by VALID, and in 2-D any pads_begin >= 0, and "
                       "takes the sizes which the forward convolution maps back")  # fmt: skip
