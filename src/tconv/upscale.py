# SPDX-License-Identifier: Apache-2.0
"""Enlarge a picture: interpolation is a depthwise transposed convolution with the sampled kernel as its weight.

With pixel centres at half-integers, output o of a picture enlarged s times lies at (o + 1/2) / s - 1/2 in the input, so input i
reaches it with weight h((o + 1/2) / s - 1/2 - i), where h is the continuous kernel. Written as a transposed convolution,
o = i * s + t - lo, that weight depends on the tap t alone and is symmetric:

    w[t] = h((t - (k - 1) / 2) / s)        k = 2 * support * s - (s mod 2)        lo = hi = (k - s) / 2

which is exactly the crop that padding="same" makes. Two choices follow Pillow, so that both give the same pictures: outputs near
the border, which lack some of their taps, use the weights that remain, made to sum to 1 (nothing darkens, nothing is repeated); and
the two axes are two passes, across and then down, between which 8-bit pictures are rounded to 8 bits.

method="net" adds what interpolation lacks: a `Network`, whose last layer is a transposed convolution too, finds it from the brightness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._functional import conv_transpose
from ._network import SHIPPED as SHIPPED
from ._network import Detail, shipped
from ._network import Network as Network
from ._pixels import pixels_of, rounded
from ._runtime import as_array, check_memory, kernel_for
from ._spec import ArgumentError, Axis, Spec, at_least_one, integer

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_BAND_VALUES = 2**21  # float64 values of a band: 16 MiB, small beside a large picture, long beside the cost of a call
_BT601 = (0.299, 0.587, 0.114)  # parts of red, green and blue in the brightness: ITU-R BT.601, as in JPEG
_LUMA = {1: (1,), 2: (1, 0), 3: _BT601, 4: (*_BT601, 0)}  # by the number of channels


class Filter(NamedTuple):
    """A continuous interpolation kernel: zero outside (-support, support), in input pixels."""

    support: int
    curve: Callable[[Floats], Floats]


def _triangle(x: Floats) -> Floats:
    return np.clip(1 - abs(x), 0, None)


def _cubic(x: Floats, a: float = -0.5) -> Floats:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, equation (4), for general a."""
    x = abs(x)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _lanczos(x: Floats, a: int = 3) -> Floats:
    return np.where(abs(x) < a, np.sinc(x) * np.sinc(x / a), 0.0)


METHODS = {"bilinear": Filter(1, _triangle), "bicubic": Filter(2, _cubic), "lanczos": Filter(3, _lanczos)}


def interpolation_kernel(method: str, scale: int) -> Floats:
    """The weight (k,) that makes a transposed convolution with stride=scale and padding="same" interpolate.

    Every stride phase sums to 1, so constants are kept. A layer's 2-D weight is the outer product of two of these.

    >>> interpolation_kernel("bilinear", 2)
    array([0.25, 0.75, 0.75, 0.25])
    >>> [len(interpolation_kernel("lanczos", scale)) for scale in (2, 3, 4)]
    [12, 17, 24]
    """
    if method not in tuple(METHODS):
        raise ArgumentError("method", method, f"must be one of {', '.join(METHODS)}")
    scale = _whole("scale", scale)
    support, curve = METHODS[method]
    taps = 2 * support * scale - scale % 2
    weight = curve((np.arange(taps) - (taps - 1) / 2) / scale)
    for phase in range(scale):
        weight[phase::scale] /= weight[phase::scale].sum()
    return weight


def enlarge(image: npt.ArrayLike, scale: int = 2, method: str | Network = "bicubic", *, luma: npt.ArrayLike | None = None,
            rows: int | None = None, threads: int | None = None, algorithm: str = "auto") -> Array:  # fmt: skip
    """Enlarge a picture by a whole number, on both axes.

    image: (height, width) or (height, width, channels); uint8, uint16, int32, float32 or float64
    result: (height * scale, width * scale[, channels]), of the same type, rounded and clipped to its range where it is an integer

    method: an interpolation, "bilinear", "bicubic" or "lanczos", which treats every channel alike: multiply colours by alpha before, divide
        after; or bicubic interpolation with the detail that a network adds to it, "net" for scale 2, 3 and 4, or a `Network`.

    `luma`, `rows`, `threads` and `algorithm` are those of `bands`.

    >>> enlarge(np.array([[0, 100]], np.uint8), 2, "bilinear")
    array([[  0,  25,  75, 100],
           [  0,  25,  75, 100]], dtype=uint8)
    """
    image, scale = pixels_of(image), _whole("scale", scale)
    check_memory((image.shape[0] * scale, image.shape[1] * scale, *image.shape[2:]), image.dtype.itemsize, None)
    parts = [part for _, part in bands(image, scale, method, luma=luma, rows=rows, threads=threads, algorithm=algorithm)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def bands(image: npt.ArrayLike, scale: int, method: str | Network, *, luma: npt.ArrayLike | None = None, rows: int | None = None,
          threads: int | None = None, algorithm: str = "auto") -> Iterator[tuple[int, Array]]:  # fmt: skip
    """The rows of `enlarge(image, scale, method)` from top to bottom, as (first row, band), so that memory stays small.

    luma: what a network sees, (channels,), the part of each channel in the brightness; detail is added to the channels that have a part.
        Or (n, channels), for n such pictures. By default one to four channels are grey, grey and alpha, RGB, RGB and alpha, with the
        parts of ITU-R BT.601; of more, each is a picture of its own.
    rows: input rows a band stands for (default: a band of about 16 MiB); the pixels do not depend on it.
    threads, algorithm: as in `conv_transpose`, but of any instruction set "auto" and "direct" are "positions": one method for bands of
    every size, as methods round differently.
    """
    image, scale = pixels_of(image), _whole("scale", scale)
    pixels = image.reshape(*image.shape[:2], -1)
    network, options = _network(method, scale), {"threads": threads, "algorithm": _one_method(algorithm)}
    detail = Detail(network, pixels, _luma(luma, pixels.shape[2]), **options) if network else None
    if rows is None:
        values = image.shape[1] * scale * pixels.shape[2] * scale  # of the output, an input row
        rows = max(1, _BAND_VALUES // values)
    rows = _whole("rows", rows)
    check_memory((min(rows, len(image)) * scale, image.shape[1] * scale, pixels.shape[2]), 8, None)
    interpolate = _Interpolation(pixels, scale, "bicubic" if network else str(method), like_pillow=not network, options=options)
    for first in range(0, len(image), rows):
        held = range(first, min(first + rows, len(image)))
        band = interpolate(held)
        if detail:
            detail.add(band, held)
        yield first * scale, rounded(band, image.dtype).reshape(*band.shape[:2], *image.shape[2:])


def _one_method(algorithm: str) -> str:
    method, isa = kernel_for(algorithm).split("_")
    return f"{'positions' if method in ('auto', 'direct') else method}_{isa}"


def _network(method: str | Network, scale: int) -> Network | None:
    """The network that a method means; None for an interpolation."""
    if isinstance(method, Network):
        if method.scale != scale:
            raise ArgumentError("scale", scale, f"must be that of the network, {method.scale}")
        return method
    if method not in (*METHODS, "net"):
        raise ArgumentError("method", method, f"must be one of {', '.join(METHODS)}, net, or a Network")
    return shipped(scale) if method == "net" else None


def _luma(luma: npt.ArrayLike | None, channels: int) -> Floats:
    """The `luma` argument as (n, channels)."""
    if luma is None:
        return np.atleast_2d(np.array(_LUMA.get(channels, np.eye(channels)), np.float64))
    parts = as_array("luma", luma)
    if parts.ndim not in (1, 2) or parts.shape[-1] != channels or parts.dtype.kind not in "fiu" or not np.isfinite(parts).all():
        raise ArgumentError("luma", luma, f"must be finite numbers, one for each of {channels} channels, or rows of these")
    return np.atleast_2d(parts.astype(np.float64))


def _whole(name: str, value: int) -> int:
    """An integer of at least 1."""
    number = integer(name, value)
    at_least_one(name, [number])
    return number


class _Interpolation:
    """Bands of an interpolated picture (height, width, channels), in float64. `like_pillow`: 8-bit pictures as Pillow computes them."""

    def __init__(self, pixels: Array, scale: int, method: str, *, like_pillow: bool, options: dict[str, Any]) -> None:
        kernel = interpolation_kernel(method, scale)
        self._pixels, self._scale, self._in_steps = pixels, scale, like_pillow and pixels.dtype == np.uint8
        self._one_axis = _Pass(kernel, self._in_steps, options)
        self._down, self._across = (Spec.build(n, len(kernel), stride=scale, padding="same").axes[0] for n in pixels.shape[:2])

    def __call__(self, rows: range) -> Floats:
        """Input rows `rows`: (len(rows) * scale, width * scale, channels)."""
        band = range(rows.start * self._scale, rows.stop * self._scale)
        reached = self._down.inputs_for(band)
        wide = self._one_axis(self._pixels[reached.start : reached.stop], self._across, range(self._across.output), along=1)
        if self._in_steps:
            wide = rounded(wide, self._pixels.dtype)
        return self._one_axis(wide, self._down, band, along=0)


class _Pass(NamedTuple):
    """Enlarges along one axis. `fixed`: weights in steps of 2^-22, Pillow's for 8 bits, where float64 sums without any rounding."""

    kernel: Floats
    fixed: bool
    options: dict[str, Any]

    def __call__(self, pixels: Array, axis: Axis, outputs: range, along: int) -> Floats:
        """`outputs` of `axis`, from the inputs that reach them: pixels (height, width, channels), enlarged `along` 0 or 1."""
        pixels = np.ascontiguousarray(pixels, np.float64)
        channels, shape, stride, crop = pixels.shape[2], [1, 1], [1, 1], [(0, 0), (0, 0)]
        lo = outputs.start + axis.lo - axis.inputs_for(outputs).start * axis.stride  # the first of these inputs lands there
        full = (pixels.shape[along] - 1) * axis.stride + axis.extent
        shape[along], stride[along], crop[along] = axis.kernel, axis.stride, (lo, full - lo - len(outputs))
        weight = np.tile(self._stepped(self.kernel).reshape(shape), (channels, 1, 1, 1))
        result = conv_transpose(pixels, weight, stride=stride, padding=crop, groups=channels, layout="channels_last", **self.options)
        self._mend_edges(np.moveaxis(result, along, 0), np.moveaxis(pixels, along, 0), axis, outputs)
        return result

    def _mend_edges(self, result: Floats, pixels: Floats, axis: Axis, outputs: range) -> None:
        """The first and last `lo` outputs of an axis lack taps: there the weights that remain are made to sum to 1."""
        held = axis.inputs_for(outputs)
        for edge in (range(min(axis.lo, axis.output)), range(max(axis.lo, axis.output - axis.lo), axis.output)):
            mended = range(max(edge.start, outputs.start), min(edge.stop, outputs.stop))
            if not mended:
                continue
            reached = axis.inputs_for(mended)
            impulses = np.eye(len(reached), axis.size, reached.start)[:, None]
            weight = conv_transpose(impulses, self.kernel[None, None], stride=axis.stride, padding="same")
            weight = weight[:, 0, mended.start : mended.stop]
            weight = self._stepped(weight / weight.sum(0))
            for o, column in zip(mended, weight.T, strict=True):
                result[o - outputs.start] = sum(w * pixels[i - held.start] for i, w in zip(reached, column, strict=True))

    def _stepped(self, weight: Floats) -> Floats:
        return np.rint(weight * 2**22) / 2**22 if self.fixed else weight
