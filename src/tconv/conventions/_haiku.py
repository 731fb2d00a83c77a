# SPDX-License-Identifier: Apache-2.0
"""Haiku: `hk.Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose` and `ConvNDTranspose`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._spec import ArgumentError, Ints, Spec, integers
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, plain, settle
from ._jax import PAIRS, crop_by, paddings
from ._tensorflow import crop_to

FORMATS = {"channels_first": True, "NC...": True, "channels_last": False, "N...C": False}
SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


def haiku(*, input_size: Ints, kernel_shape: Ints, stride: Ints = 1, output_shape: Ints | None = None,
          padding: str | Sequence[Crop] = "SAME", data_format: str = "channels_last", batch: int = 1, in_channels: int | None = None,
          out_channels: int | None = None) -> Convention:  # fmt: skip
    """Haiku's words: SAME, VALID and pairs as in `jax.lax.conv_transpose`; with `output_shape` the strings are TensorFlow's.

    `output_shape` is spatial, and must be a size which the forward convolution maps back to the input's. The weight is
    `(*k, Cout, Cin)` with its kernel flipped, for both data formats. There are neither groups nor dilation. Read in
    `haiku/_src/conv.py`, 0.0.17.

    >>> haiku(input_size=(8, 8), kernel_shape=3, stride=2, output_shape=15).spec.crop
    ((1, 1), (1, 1))
    """
    axes = bare_axes(input_size, kernel_shape=kernel_shape, stride=stride)
    known = FORMATS | {f"NC{SPATIAL[len(axes)]}": True, f"N{SPATIAL[len(axes)]}C": False}
    if data_format not in known:
        raise ArgumentError("data_format", data_format, f"must be one of {', '.join(known)}")
    if output_shape is None:
        crop = crop_by(padding, axes)
    elif padding in ("SAME", "VALID"):
        sizes = integers("output_shape", output_shape, len(axes))
        crop = [crop_to(axis, size, str(padding)) for axis, size in zip(axes, sizes, strict=True)]
    else:
        raise ArgumentError("padding", padding, 'must be "SAME" or "VALID" beside output_shape')
    return settle("haiku", axes, crop, WeightLayout("*OI", flip=True),
                  "channels_first" if known[data_format] else "channels_last", batch=batch, in_channels=in_channels, out_channels=out_channels,
                  notes=[] if isinstance(padding, str) else [PAIRS])  # fmt: skip


def _guesses(spec: Spec) -> Iterator[Arguments]:
    for padding in paddings(spec):
        yield {"kernel_shape": plain(spec.kernel_size), "stride": plain(spec.stride), "padding": padding}


HAIKU = Framework(haiku, _guesses, "crops by SAME, by VALID and by any pair per axis", kernel="kernel_shape", dilates=())
