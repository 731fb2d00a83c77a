# SPDX-License-Identifier: Apache-2.0
"""The crop of a layer in the words of the peers; `Cannot` where a library has no words for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from .._spec import Axis


class Cannot(Exception):
    """A library has no such layer; the text says why."""


class Asked(NamedTuple):
    """What TensorFlow or LiteRT is asked for: its padding, the output's size, and the slices of that to keep (None: all)."""

    padding: Any
    size: tuple[int, ...]
    cut: tuple[slice, ...] | None


def torch(axes: tuple[Axis, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(padding, output_padding), one number an axis, or None where PyTorch's words cannot say the crop."""
    extra = tuple(a.lo - a.hi for a in axes)
    fits = all(a.lo >= 0 and 0 <= e < max(a.stride, a.dilation) for a, e in zip(axes, extra, strict=True))
    return (tuple(a.lo for a in axes), extra) if fits else None


def onnx(axes: tuple[Axis, ...]) -> tuple[list[int], list[int], list[int]]:
    """(pads_begin, pads_end, output_padding), the words of ONNX and OpenVINO."""
    if any(a.lo < 0 or -a.hi >= max(a.stride, a.dilation) for a in axes):
        raise Cannot("padding cannot add these zeros")
    return [a.lo for a in axes], [max(a.hi, 0) for a in axes], [max(-a.hi, 0) for a in axes]


def tensorflow(axes: tuple[Axis, ...], explicit: bool) -> Asked:
    """VALID or SAME where they mean the crop, then explicit pairs where the layer takes them, then the full output cut."""
    size = tuple(a.output for a in axes)
    if all(a.lo == 0 and -a.stride < a.hi <= 0 for a in axes):
        return Asked("VALID", size, None)
    if all(a.lo == max(a.full - a.output, 0) // 2 and -(-a.output // a.stride) == a.size for a in axes):
        return Asked("SAME", size, None)
    if explicit and all(a.lo >= 0 and a.hi >= 0 for a in axes):
        return Asked([[0, 0], *([a.lo, a.hi] for a in axes), [0, 0]], size, None)
    return Asked("VALID", tuple(a.full for a in axes), slices(axes))


def slices(axes: tuple[Axis, ...]) -> tuple[slice, ...]:
    """The part of the full output that a crop keeps."""
    if any(a.lo < 0 or a.hi < 0 for a in axes):
        raise Cannot("padding cannot add these zeros")
    return tuple(slice(a.lo, a.full - a.hi) for a in axes)
