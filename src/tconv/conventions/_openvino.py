# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: the operations ConvolutionBackpropData and GroupConvolutionBackpropData, operator set 1."""

from __future__ import annotations

from collections.abc import Iterator

from .._spec import ArgumentError, Axis, Ints, Spec, axes_line, integer, integers
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, non_negative, settle, unless_one

AUTO_PAD = ("explicit", "same_upper", "same_lower", "valid")


def openvino(*, input_size: Ints, kernel_size: Ints, strides: Ints, output_shape: Ints | None = None, pads_begin: Ints | None = None,
             pads_end: Ints | None = None, dilations: Ints | None = None, auto_pad: str = "explicit", output_padding: Ints | None = None,
             groups: int = 1, batch: int = 1, in_channels: int | None = None, out_channels: int | None = None) -> Convention:  # fmt: skip
    """OpenVINO's words: lo = pads_begin, hi = pads_end - output_padding, of any size.

    With `output_shape` (spatial) pads_end is not read: hi = F - lo - O. Under auto_pad same_upper and same_lower the total
    T = max(F + output_padding - O, 0) is then split, ceil(T / 2) at the start by same_upper and floor(T / 2) by same_lower, which is
    the reverse of ONNX. Any auto_pad but "explicit" sets the pads aside, and without `output_shape` crops nothing. Groups are
    an axis of the filters' shape, `(groups, Cin / groups, Cout / groups, *k)`, not an argument; the function for them drops its
    pads beside `output_shape`, which is refused, as is a shift of one tap at stride 1, which OpenVINO forgets. Read in the specification of
    ConvolutionBackpropData-1; what it leaves open, as 2026.4 computes it.

    >>> openvino(input_size=(8, 8), kernel_size=3, strides=2, pads_begin=1, pads_end=1, output_padding=1).spec.crop
    ((1, 0), (1, 0))
    """
    axes = bare_axes(input_size, kernel_size=kernel_size, strides=strides, dilations=1 if dilations is None else dilations)
    named = {"pads_begin": pads_begin, "pads_end": pads_end, "output_padding": output_padding}
    given = {name: non_negative(name, 0 if value is None else value, len(axes)) for name, value in named.items()}
    mode = auto_pad.lower() if isinstance(auto_pad, str) else ""
    if mode not in AUTO_PAD:
        raise ArgumentError("auto_pad", auto_pad, f"must be one of {', '.join(AUTO_PAD)}")
    pads = [given["pads_begin"], given["pads_end"]] if mode == "explicit" else [(0,) * len(axes)] * 2
    groups = integer("groups", groups)
    if groups > 1 and output_shape is not None and any(pads[0]):
        raise ArgumentError("pads_begin", pads_begin, "cannot be given beside output_shape and groups: group_convolution_backprop_data drops "
                            "its pads there; write pads and output_padding")  # fmt: skip
    crop = [(lo, hi - more) for lo, hi, more in zip(*pads, given["output_padding"], strict=True)]
    if output_shape is not None:
        sizes = integers("output_shape", output_shape, len(axes))
        columns = zip(axes, sizes, given["output_padding"], pads[0], strict=True)
        crop = [_crop(axis, size, extra, begin, mode) for axis, size, extra, begin in columns]
    if all(axis.kernel == axis.stride == 1 and lo == -hi for axis, (lo, hi) in zip(axes, crop, strict=True)) and any(map(any, crop)):
        raise ArgumentError("pads_begin", pads_begin, "shifts a layer of one tap and stride 1, which OpenVINO takes for a matrix product "
                            "without a shift", axes_line(axes))  # fmt: skip
    return settle("openvino", axes, crop, WeightLayout("GIO*", groups=groups, by="G") if groups > 1 else WeightLayout(), "channels_first",
                  groups=groups, batch=batch, in_channels=in_channels, out_channels=out_channels,
                  notes=_notes(mode, output_shape, groups))  # fmt: skip


def _crop(axis: Axis, size: int, extra: int, begin: int, mode: str) -> Crop:
    """The crop to an asked size."""
    total = max(axis.full + extra - size, 0)
    lo = {"same_upper": -(-total // 2), "same_lower": total // 2}.get(mode, begin)
    return lo, axis.full - lo - size


def _notes(mode: str, output_shape: Ints | None, groups: int) -> Iterator[str]:
    if groups > 1:
        yield "groups are an axis of the filters: this is group_convolution_backprop_data"
    if mode.startswith("same") and output_shape is None:
        yield "without output_shape, auto_pad same_* crops nothing"
    if mode.startswith("same") and output_shape is not None:
        yield "OpenVINO splits an odd total the other way round than ONNX: write pads"


def _guesses(spec: Spec) -> Iterator[Arguments]:
    extra = tuple(max(-hi, 0) for _, hi in spec.crop)
    begins, ends = tuple(lo for lo, _ in spec.crop), tuple(max(hi, 0) for _, hi in spec.crop)
    yield {
        "strides": spec.stride,
        "pads_begin": begins if any(begins) else None,
        "pads_end": ends if any(ends) else None,
        "dilations": spec.dilation if unless_one(spec.dilation) != 1 else None,
        "output_padding": extra if any(extra) else None,
    }


OPENVINO = Framework(
    openvino, _guesses, "crops lo = pads_begin >= 0 and hi = pads_end - output_padding", groups=True, grouped_by_weight=True
)
