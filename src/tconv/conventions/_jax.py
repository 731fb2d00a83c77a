# SPDX-License-Identifier: Apache-2.0
"""JAX: `jax.lax.conv_transpose`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .._spec import ArgumentError, Axis, Ints, Spec, pairs
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, from_pads, same_pads, settle

PAIRS = "pairs pad the dilated input: they are K - 1 less the crop"
SPATIAL = {1: "H", 2: "HW", 3: "HWD"}


def jax(*, input_size: Ints, kernel_size: Ints, strides: Ints, padding: str | Sequence[Crop], rhs_dilation: Ints | None = None,
        dimension_numbers: tuple[str, str, str] | None = None, transpose_kernel: bool = False, use_consistent_padding: bool = False,
        batch: int = 1, in_channels: int | None = None, out_channels: int | None = None) -> Convention:  # fmt: skip
    """JAX's words: SAME gives I * stride, VALID (I - 1) * stride + max(K, stride), and a pair (a, b) crops (K - 1 - a, K - 1 - b).

    Pairs pad the stride-dilated input, other than the strings, which name the padding of the forward convolution;
    with `use_consistent_padding` pairs do so too and are the crop itself. Unless `transpose_kernel` is set the kernel
    is not reversed where every other framework reverses it, so the weight is `(*k, Cin, Cout)` with its kernel flipped;
    set, it is `(*k, Cout, Cin)` as in TensorFlow. There are no groups.

    >>> jax(input_size=(8, 8), kernel_size=4, strides=(2, 2), padding=[(2, 2), (2, 2)]).spec.crop
    ((1, 1), (1, 1))
    """
    axes = bare_axes(input_size, kernel_size=kernel_size, strides=strides, rhs_dilation=1 if rhs_dilation is None else rhs_dilation)
    notes: list[str] = []
    if use_consistent_padding and not isinstance(padding, str):
        crop = _pads(padding, axes)
    else:
        crop = crop_by(padding, axes)
        notes += [f"{PAIRS}, unless use_consistent_padding is set"] * (not isinstance(padding, str))
    weight, layout = _numbers(dimension_numbers, len(axes), transpose_kernel)
    return settle("jax", axes, crop, weight, layout, batch=batch, in_channels=in_channels, out_channels=out_channels, notes=notes)


def crop_by(padding: str | Sequence[Crop], axes: Sequence[Axis]) -> list[Crop]:
    """The crop that a string means, or pairs that pad the dilated input."""
    if padding == "SAME":
        return [from_pads(axis, *same_pads(axis, axis.extent + axis.stride - 2)) for axis in axes]
    if padding == "VALID":
        return [(0, axis.extent - max(axis.extent, axis.stride)) for axis in axes]
    if isinstance(padding, str):
        raise ArgumentError("padding", padding, 'must be "SAME", "VALID" (in capitals) or one pair per spatial axis')
    return [from_pads(axis, *pad) for axis, pad in zip(axes, _pads(padding, axes), strict=True)]


def _pads(padding: Sequence[Crop], axes: Sequence[Axis]) -> list[Crop]:
    if not isinstance(padding, Sequence) or any(not isinstance(pair, Sequence) for pair in padding) or len(padding) != len(axes):
        raise ArgumentError("padding", padding, f"must hold one (before, after) pair per spatial axis, here {len(axes)}")
    return pairs("padding", padding, len(axes))


def _numbers(numbers: tuple[str, str, str] | None, rank: int, transposed: bool) -> tuple[WeightLayout, str]:
    """The axes that dimension_numbers names, as ("NHWC", "HWIO", "NHWC"); `transposed` reads the slot I as Cout, O as Cin."""
    default = (f"N{SPATIAL[rank]}C", f"{SPATIAL[rank]}IO", f"N{SPATIAL[rank]}C")
    data, kernel, result = map(str, numbers if numbers and len(numbers) == 3 else default)
    letters = "".join(letter for letter in kernel if letter not in "IO")
    axes = kernel.replace(letters, "*", 1) if letters else ""
    good = sorted(axes) == sorted("IO*") and len(letters) == rank and data == result and data in (f"N{letters}C", f"NC{letters}")
    if not good or (numbers and len(numbers) != 3):
        raise ArgumentError("dimension_numbers", numbers, f"must be as {default}: spatial axes side by side and in one order, data and result "
                            "alike")  # fmt: skip
    if transposed:
        axes = axes.translate(str.maketrans("IO", "OI"))
    return WeightLayout(axes, flip=not transposed), "channels_first" if data[1] == "C" else "channels_last"


def paddings(spec: Spec) -> tuple[Any, ...]:
    """The strings, and the pairs that mean the crop: K - 1 less it, its own inverse."""
    return "SAME", "VALID", tuple(from_pads(axis, axis.lo, axis.hi) for axis in spec.axes)


def _guesses(spec: Spec) -> Iterator[Arguments]:
    for padding in paddings(spec):
        yield {"strides": spec.stride, "padding": padding, "rhs_dilation": spec.dilation if max(spec.dilation) > 1 else None,
               "transpose_kernel": True}  # fmt: skip


JAX = Framework(jax, _guesses, "crops by SAME, by VALID and by any pair per axis")
