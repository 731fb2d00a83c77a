# SPDX-License-Identifier: Apache-2.0
"""ncnn: the layers Deconvolution, Deconvolution1D and Deconvolution3D, and their DepthWise kinds, which have groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .._spec import ArgumentError, Axis, Ints, Spec, axes_line, integer, integers
from ._convention import Arguments, Convention, Crop, Framework, WeightLayout, bare_axes, lettered, settle

BEGIN, END = {"d": "pad_front", "h": "pad_top", "w": "pad_left"}, {"d": "pad_behind", "h": "pad_bottom", "w": "pad_right"}
EXTRA = {"d": "output_pad_behind", "h": "output_pad_bottom", "w": "output_pad_right"}
SAME_UPPER, SAME_LOWER = -233, -234


def ncnn(*, input_size: Ints, kernel_w: int, kernel_h: int | None = None, kernel_d: int | None = None, dilation_w: int = 1,
         dilation_h: int | None = None, dilation_d: int | None = None, stride_w: int = 1, stride_h: int | None = None,
         stride_d: int | None = None, pad_left: int = 0, pad_right: int | None = None, pad_top: int | None = None,
         pad_bottom: int | None = None, pad_front: int | None = None, pad_behind: int | None = None, output_pad_right: int = 0,
         output_pad_bottom: int | None = None, output_pad_behind: int | None = None, output_w: int = 0, output_h: int | None = None,
         output_d: int | None = None, group: int = 1, batch: int = 1, in_channels: int | None = None,
         out_channels: int | None = None) -> Convention:  # fmt: skip
    """ncnn's parameters by name: lo = pad_left, hi = pad_right - output_pad_right, and so on for h and d.

    What is not given is as for w; pad_right, pad_bottom and pad_behind are as the pad at the other end. With a pad of -233
    (SAME_UPPER) or -234 (SAME_LOWER) and output sizes, T = F + output_pad - O is split, floor(T / 2) at the start by the first and at
    the end by the second; T below 0 is refused, where ncnn reads beyond its buffer. The weight is `(Cout, Cin / groups, *k)`; data
    has no batch. Read in `src/layer/deconvolution*.cpp`, 2026-10.

    >>> ncnn(input_size=(8, 8), kernel_w=3, stride_w=2, pad_left=1, output_pad_right=1).spec.crop
    ((1, 0), (1, 0))
    """
    words: dict[str, Any] = locals().copy()
    rank = len(integers("input_size", input_size))
    axes = bare_axes(input_size, **{name: lettered(words, f"{name}_{{}}", rank) for name in ("kernel", "stride", "dilation")})
    letters = "dhw"[-rank:]
    begins = [integer(BEGIN[a], pad_left if words[BEGIN[a]] is None else words[BEGIN[a]]) for a in letters]
    ends = [integer(END[a], begin if words[END[a]] is None else words[END[a]]) for a, begin in zip(letters, begins, strict=True)]
    extra = [integer(EXTRA[a], output_pad_right if words[EXTRA[a]] is None else words[EXTRA[a]]) for a in letters]
    if min(extra) < 0:
        raise ArgumentError("output_pad_right", output_pad_right, "must be at least 0")
    if pad_left in (SAME_UPPER, SAME_LOWER):
        crop = _same(axes, {*begins, *ends}, extra, lettered(words, "output_{}", rank))
    elif output_w:
        raise ArgumentError("output_w", output_w, "is read only beside pad_left=-233 or -234; else ncnn fails, or sets it aside")
    else:
        crop = [(begin, end - more) for begin, end, more in zip(begins, ends, extra, strict=True)]
        if min(*begins, *ends) < 0:
            raise ArgumentError("pad_left", pad_left, "must be at least 0, and so must the other pads; or all are -233 or -234")
    groups = integer("group", group)
    notes = ["groups need the layer's DepthWise kind"] * (groups > 1) + ["a net takes one sample"] * (batch != 1)
    return settle("ncnn", axes, crop, WeightLayout("OI*", groups=groups, by="O"), "channels_first", groups=groups, batch=batch,
                  in_channels=in_channels, out_channels=out_channels, notes=notes, lacks="N")  # fmt: skip


def _same(axes: Sequence[Axis], pads: set[int], extra: Sequence[int], sizes: Sequence[int]) -> list[Crop]:
    if len(pads) > 1:
        raise ArgumentError("pad_left", sorted(pads), "must be the same for all pads where one is -233 or -234")
    if min(sizes) < 1:
        raise ArgumentError("output_w", tuple(sizes), "must be at least 1 where pads are -233 or -234; else ncnn crops nothing")
    totals = [axis.full + more - size for axis, more, size in zip(axes, extra, sizes, strict=True)]
    if min(totals) < 0:
        raise ArgumentError("output_w", tuple(sizes), "is above the full size, where ncnn reads beyond its buffer", axes_line(axes))
    befores = [total // 2 if SAME_UPPER in pads else total - total // 2 for total in totals]
    return [(before, total - before - more) for before, total, more in zip(befores, totals, extra, strict=True)]


def _guesses(spec: Spec) -> Iterator[Arguments]:
    letters = "dhw"[-spec.rank :]
    pads = {BEGIN[a]: lo for a, (lo, _) in zip(letters, spec.crop, strict=True)}
    ends = {END[a]: max(hi, 0) for a, (_, hi) in zip(letters, spec.crop, strict=True)}
    extra = {EXTRA[a]: max(-hi, 0) for a, (_, hi) in zip(letters, spec.crop, strict=True)}
    named = {name: {f"{name}_{a}": value for a, value in zip(letters, getattr(spec, field), strict=True)}
             for name, field in (("kernel", "kernel_size"), ("stride", "stride"), ("dilation", "dilation"))}  # fmt: skip
    words = {name: value for group in (named["kernel"], named["stride"], named["dilation"], pads, extra) for name, value in as_w(group)}
    yield words | {END[a]: ends[END[a]] for a in letters if ends[END[a]] != pads[BEGIN[a]]} | {"group": spec.groups}


def as_w(group: dict[str, int]) -> Iterator[tuple[str, int]]:
    """The words of one kind, the last of which is that of w, without those that say the same as it."""
    *others, (last, value) = group.items()
    yield last, value
    yield from (pair for pair in others if pair[1] != value)


NCNN = Framework(ncnn, _guesses, "crops lo = pad_left >= 0 and hi = pad_right - output_pad_right", kernel=None, groups=True)
