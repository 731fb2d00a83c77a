# SPDX-License-Identifier: Apache-2.0
"""Flax: `flax.linen.ConvTranspose` and `flax.nnx.ConvTranspose`, which have the same words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .._spec import ArgumentError, Axis, Ints, Spec, is_single
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, settle
from ._jax import PAIRS, crop_by, paddings


def flax(*, input_size: Ints, kernel_size: Ints, strides: Ints | None = None, padding: str | int | Sequence[int | Crop] = "SAME",
         kernel_dilation: Ints | None = None, transpose_kernel: bool = False, batch: int = 1, in_channels: int | None = None,
         out_channels: int | None = None) -> Convention:  # fmt: skip
    """Flax's words are those of `jax.lax.conv_transpose`: SAME, VALID, pairs that pad the dilated input; an int p is the pair (p, p).

    The kernel is not reversed where most others reverse it, so the weight is `(*k, Cin, Cout)` with its kernel flipped; with
    `transpose_kernel` it is `(*k, Cout, Cin)` as in TensorFlow. "CIRCULAR" wraps the output around, which no crop does. An int
    for `kernel_size` makes a 1-D layer, whatever the data. There are no groups. Read in `flax/linen/linear.py`, 0.12.

    >>> flax(input_size=(8, 8), kernel_size=(4, 4), strides=2).spec.crop
    ((1, 1), (1, 1))
    """
    strides, kernel_dilation = (1 if value is None else value for value in (strides, kernel_dilation))
    axes = bare_axes(input_size, kernel_size=kernel_size, strides=strides, kernel_dilation=kernel_dilation)
    if is_single(kernel_size) and len(axes) > 1:
        raise ArgumentError("kernel_size", kernel_size, f"must be a tuple of {len(axes)}: to Flax, an int is a layer of one axis")
    if padding == "CIRCULAR":
        raise ArgumentError("padding", padding, "wraps the output around, which no crop of the full output does")
    notes = [] if isinstance(padding, str) else [PAIRS]
    weight = WeightLayout("*OI") if transpose_kernel else WeightLayout("*IO", flip=True)
    return settle("flax", axes, crop_by(_pairs(padding, axes), axes), weight, "channels_last", batch=batch, in_channels=in_channels,
                  out_channels=out_channels, notes=notes)  # fmt: skip


def _pairs(padding: Any, axes: Sequence[Axis]) -> Any:
    """Ints as the pairs that they stand for; what is neither is left for the rule that names it."""
    if isinstance(padding, str):
        return padding
    each = (padding,) * len(axes) if is_single(padding) else padding
    return [(p, p) if isinstance(p, int) else p for p in each]


def _guesses(spec: Spec) -> Iterator[Arguments]:
    for padding in paddings(spec):
        yield {"kernel_size": spec.kernel_size, "strides": spec.stride if max(spec.stride) > 1 else None, "padding": padding,
               "kernel_dilation": spec.dilation if max(spec.dilation) > 1 else None, "transpose_kernel": True}  # fmt: skip


FLAX = Framework(flax, _guesses, "crops by SAME, by VALID and by any pair per axis")
