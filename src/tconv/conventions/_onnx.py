# SPDX-License-Identifier: Apache-2.0
"""ONNX: the operator ConvTranspose, operator set 11 and later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._spec import ArgumentError, Axis, Ints, Spec, axes_line, integer, integers
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, below, non_negative, settle, unless_one

AUTO_PAD = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def onnx(*, input_size: Ints, kernel_shape: Ints, strides: Ints = 1, pads: Sequence[int] | None = None, auto_pad: str = "NOTSET",
         output_shape: Ints | None = None, output_padding: Ints = 0, dilations: Ints = 1, group: int = 1, batch: int = 1,
         in_channels: int | None = None, out_channels: int | None = None) -> Convention:  # fmt: skip
    """ONNX's words: lo = pads_begin, hi = pads_end - output_padding.

    `pads` holds all begins, then all ends. With `output_shape` (spatial axes only), or auto_pad `SAME_*` which asks for
    strides * input, the attribute `pads` is not read; the total T = F + output_padding - size is split instead:
    SAME_UPPER cuts floor(T / 2) at the start, everything else floor(T / 2) at the end. auto_pad VALID without
    output_shape cuts nothing. Pads are at least 0 and exclude auto_pad; 0 <= output_padding < max(stride, dilation).
    Where T is negative the runtimes contradict each other, so it is refused but for the one case they agree on.

    >>> onnx(input_size=(8, 8), kernel_shape=3, strides=2, pads=(1, 1, 1, 1), output_padding=1).spec.crop
    ((1, 0), (1, 0))
    """
    axes = bare_axes(input_size, kernel_shape=kernel_shape, strides=strides, dilations=dilations)
    extra = non_negative("output_padding", output_padding, len(axes))
    below("output_padding", extra, axes, "stride", "dilation")
    if auto_pad not in AUTO_PAD:
        raise ArgumentError("auto_pad", auto_pad, f"must be one of {', '.join(AUTO_PAD)}")
    if pads is not None and auto_pad != "NOTSET":
        raise ArgumentError("pads", pads, f"cannot be given together with auto_pad={auto_pad!r}")
    begins, ends = _pads(pads, len(axes))
    if output_shape is not None:
        sizes = integers("output_shape", output_shape, len(axes))
        crop = [_split(*asked, auto_pad, "output_shape") for asked in zip(axes, extra, sizes, strict=True)]
    elif auto_pad.startswith("SAME"):
        crop = [_split(axis, more, axis.size * axis.stride, auto_pad, "auto_pad") for axis, more in zip(axes, extra, strict=True)]
    else:
        crop = [(begin, end - more) for begin, end, more in zip(begins, ends, extra, strict=True)]
    return settle("onnx", axes, crop, WeightLayout("IO*"), "channels_first", groups=integer("group", group), batch=batch,
                  in_channels=in_channels, out_channels=out_channels, notes=_notes(axes, extra, auto_pad, output_shape))  # fmt: skip


def _pads(pads: Sequence[int] | None, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found = (0,) * (2 * rank) if pads is None else integers("pads", pads)
    if len(found) != 2 * rank or min(found) < 0:
        raise ArgumentError("pads", pads, f"must hold {2 * rank} ints of at least 0: all begins, then all ends")
    return found[:rank], found[rank:]


def _split(axis: Axis, extra: int, size: int, auto_pad: str, word: str) -> Crop:
    """The crop to an asked size. T = -1 after the end is what onnxruntime, OpenVINO and the operator's own test do."""
    total = axis.full + extra - size
    agreed = total == -1 and extra + 1 < axis.stride and word == "output_shape" and auto_pad != "SAME_UPPER"
    if total < 0 and not agreed:
        raise ArgumentError(word, size if word == "output_shape" else auto_pad, f"asks for a size of {size}, {-total} above the largest, "
                            f"{axis.full + extra}, where runtimes differ; write pads and output_padding", axes_line([axis]))  # fmt: skip
    begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    return begin, total - begin - extra


def _notes(axes: Sequence[Axis], extra: Sequence[int], auto_pad: str, output_shape: Ints | None) -> Iterator[str]:
    if any(more >= axis.stride for axis, more in zip(axes, extra, strict=True)):
        yield "onnxruntime refuses output_padding >= stride: lower pads_end by output_padding instead"
    if auto_pad.startswith("SAME") and any(extra):
        yield "with auto_pad SAME_* the size is strides * input; shape inference wrongly adds output_padding"
    if auto_pad == "SAME_UPPER" and output_shape is not None:
        yield "OpenVINO splits an odd total the other way round under SAME_UPPER with output_shape: write pads"


def _guesses(spec: Spec) -> Iterator[Arguments]:
    extra = tuple(max(-hi, 0) for _, hi in spec.crop)
    pads = (*(lo for lo, _ in spec.crop), *(max(hi, 0) for _, hi in spec.crop))
    if all(more < stride for more, stride in zip(extra, spec.stride, strict=True)):
        yield {
            "kernel_shape": spec.kernel_size,
            "strides": unless_one(spec.stride),
            "pads": pads if any(pads) else None,
            "output_padding": extra if any(extra) else 0,
            "dilations": unless_one(spec.dilation),
            "group": spec.groups,
        }


ONNX = Framework(onnx, _guesses, "crops lo = pads_begin >= 0 and hi = pads_end - output_padding, and onnxruntime wants output_padding "
                 "below stride", kernel="kernel_shape", groups=True)  # fmt: skip
