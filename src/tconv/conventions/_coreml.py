# SPDX-License-Identifier: Apache-2.0
"""Core ML: the operation `conv_transpose` of its model intermediate language, MIL, as coremltools documents it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._spec import ArgumentError, Ints, Spec, integer, integers
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, settle
from ._tensorflow import crop_to, whole_shape

ODD = "no document says where Core ML puts the odd pixel of same; this is what coremltools takes it for, TensorFlow's: write pad"


def coreml(*, input_size: Ints, kernel_size: Ints, pad: Sequence[int] | None = None, output_shape: Ints | None = None,
           pad_type: str = "valid", strides: Ints = 1, dilations: Ints = 1, groups: int = 1, batch: int | None = None,
           in_channels: int | None = None, out_channels: int | None = None) -> Convention:  # fmt: skip
    """Core ML's words: "custom" crops `pad`, begin and end of one axis after the other; "valid" nothing; "same" gives I * stride.

    With `output_shape`, the whole shape, "same" and "valid" are TensorFlow's: coremltools hands that framework's words over as
    they are. Core ML itself runs on Apple's machines alone, where we have none: formulas are those of coremltools 9, whose
    inference of shapes the tests run. `pad` is at least 0.

    >>> coreml(input_size=(8, 8), kernel_size=4, strides=2, pad_type="custom", pad=(1, 1, 1, 1)).spec.output_size
    (16, 16)
    """
    axes = bare_axes(input_size, kernel_size=kernel_size, strides=strides, dilations=dilations)
    if pad_type not in ("valid", "custom", "same"):
        raise ArgumentError("pad_type", pad_type, "must be valid, custom or same")
    if pad_type != "custom" and pad is not None:
        raise ArgumentError("pad", pad, 'is read only with pad_type="custom"')
    notes = []
    if pad_type == "custom":
        if output_shape is not None:
            raise ArgumentError("output_shape", output_shape, 'cannot be given with pad_type="custom": no document says which end it crops')
        crop = _pads(pad, len(axes))
    else:
        sizes = tuple(axis.size * axis.stride if pad_type == "same" else axis.full for axis in axes)
        if output_shape is not None:
            sizes, batch, out_channels = whole_shape(output_shape, len(axes), "channels_first", batch, out_channels)
        crop = [crop_to(axis, size, pad_type.upper()) for axis, size in zip(axes, sizes, strict=True)]
        notes = [ODD] * (pad_type == "same" and any(lo != hi for lo, hi in crop))
    return settle("coreml", axes, crop, WeightLayout(), "channels_first", groups=integer("groups", groups), batch=batch or 1,
                  in_channels=in_channels, out_channels=out_channels, notes=notes)  # fmt: skip


def _pads(pad: Sequence[int] | None, rank: int) -> list[Crop]:
    found = integers("pad", (0,) * (2 * rank) if pad is None else pad)
    if len(found) != 2 * rank or min(found) < 0:
        raise ArgumentError("pad", pad, f"must hold {2 * rank} ints of at least 0: begin and end of each axis in turn")
    return list(zip(found[::2], found[1::2], strict=True))


def _guesses(spec: Spec) -> Iterator[Arguments]:
    words = {"strides": spec.stride if max(spec.stride) > 1 else 1, "dilations": spec.dilation if max(spec.dilation) > 1 else 1,
             "groups": spec.groups}  # fmt: skip
    yield {"pad_type": "valid"} | words
    yield {"pad_type": "custom", "pad": tuple(end for pair in spec.crop for end in pair)} | words


COREML = Framework(coreml, _guesses, "crops any pad >= 0 per side", groups=True)
