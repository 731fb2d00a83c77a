# SPDX-License-Identifier: Apache-2.0
"""Equinox: `equinox.nn.ConvTranspose`, `ConvTranspose1d`, `2d`, `3d`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._spec import ArgumentError, Axis, Ints, Padding, Spec, axes_line, integer, integers, pairs
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, below, plain, settle


def equinox(*, input_size: Ints, kernel_size: Ints, stride: Ints = 1, padding: Padding = 0, output_padding: Ints = 0, dilation: Ints = 1,
            groups: int = 1, padding_mode: str = "ZEROS", batch: int = 1, in_channels: int | None = None,
            out_channels: int | None = None) -> Convention:  # fmt: skip
    """Equinox's words: lo = before, hi = after - output_padding, for ints and for pairs, which may be negative.

    "VALID" is a padding of 0. "SAME" gives I * stride where output_padding is 0: it splits P = K - stride + output_padding, the
    larger half at the end ("SAME_LOWER": at the start); a negative P appends zeros. output_padding lies below the stride. The
    weight is `(Cout, Cin / groups, *k)` with its kernel flipped; data has no batch: `jax.vmap`. padding_mode "CIRCULAR" is no
    crop. Read in `equinox/nn/_conv.py`, 0.13.

    >>> equinox(input_size=(8, 8), kernel_size=3, stride=2, padding="SAME").spec.crop
    ((0, 1), (0, 1))
    """
    axes = bare_axes(input_size, kernel_size=kernel_size, stride=stride, dilation=dilation)
    extra = integers("output_padding", output_padding, len(axes))
    below("output_padding", extra, axes, "stride")
    if padding_mode.upper() != "ZEROS":
        raise ArgumentError("padding_mode", padding_mode, 'must be "ZEROS": no crop of the full output does anything else')
    groups = integer("groups", groups)
    notes = ["the layer takes one sample: jax.vmap it over the batch"] if batch != 1 else []
    return settle("equinox", axes, _crop(padding, axes, extra), WeightLayout("OI*", flip=True, groups=groups, by="O"), "channels_first",
                  groups=groups, batch=batch, in_channels=in_channels, out_channels=out_channels, notes=notes, lacks="N")  # fmt: skip


def _crop(padding: Padding, axes: Sequence[Axis], extra: Sequence[int]) -> list[Crop]:
    if not isinstance(padding, str) or padding.upper() == "VALID":
        cut = pairs("padding", 0 if isinstance(padding, str) else padding, len(axes))
        return [(lo, hi - more) for (lo, hi), more in zip(cut, extra, strict=True)]
    if padding.upper() not in ("SAME", "SAME_LOWER"):
        raise ArgumentError("padding", padding, 'must be "SAME", "SAME_LOWER", "VALID", ints or pairs', axes_line(axes))
    totals = [axis.extent - axis.stride + more for axis, more in zip(axes, extra, strict=True)]
    befores = [(max(total, 0) + (padding.upper() == "SAME_LOWER")) // 2 for total in totals]
    return [(before, total - before) for before, total in zip(befores, totals, strict=True)]


def _guesses(spec: Spec) -> Iterator[Arguments]:
    common = {"kernel_size": plain(spec.kernel_size), "stride": plain(spec.stride)}
    last = {"dilation": plain(spec.dilation), "groups": spec.groups}
    extra = tuple(lo - hi for lo, hi in spec.crop)
    yield common | {"padding": plain(lo for lo, _ in spec.crop), "output_padding": plain(extra)} | last
    yield common | {"padding": "SAME"} | last
    yield common | {"padding": spec.crop} | last


EQUINOX = Framework(equinox, _guesses, "crops any pair per axis", groups=True)
