# SPDX-License-Identifier: Apache-2.0
"""Sharpen a blurred picture whose blur is known: `restore` undoes it, `kernel` draws the usual ones.

A blur is a convolution with the picture of a point of light. Undoing it amplifies whatever the blur had weakened, noise first of all, so
every method here holds back: by smoothing as much as the noise asks for, or by stopping early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil, cos, isfinite, radians, sin

import numpy as np
import numpy.typing as npt

from ._deconvolve import deconvolve
from ._method import Deconvolution
from ._pixels import pixels_of, rounded
from ._runtime import Array, as_array
from ._spec import ArgumentError

_FINE = 8  # points a side of a pixel, so that edges are smooth
_LARGEST = 512  # pixels a side of a drawn kernel
METHODS = ("fourier", "tv", "richardson_lucy", "lsmr")


def restore(image: npt.ArrayLike, kernel: npt.ArrayLike, *, boundary: str = "reflect", method: str = "fourier",
            regularization: float | str | None = None, noise: float | None = None, iterations: int | None = None,
            tolerance: float | None = None, threads: int | None = None, progress: Callable[[int], None] | None = None) -> Deconvolution:  # fmt: skip
    """The picture before the blur, with evidence: `x` is the picture, of the type of `image`, rounded and clipped where it is an integer.

    image: (height, width) or (height, width, channels); uint8, uint16, int32, float32 or float64
    kernel: (height, width), what a point of light became; made to sum to 1, its middle is at (size - 1) // 2

    `boundary` says what lies beyond the border: "reflect", "replicate", "circular", "zero", or "free", where nothing is known of it.
    `method` is "fourier" (fast, smooth, by the Laplacian and GCV), "tv" (slow, keeps edges), "richardson_lucy" (for photon counts) or
    "lsmr" (any boundary to the letter). `noise` is in the picture's values. All else, and the errors, are those of `tconv.deconvolve`.
    Every channel is treated alike, and blurs in light, so pictures that are gamma-coded are better made linear before.

    >>> import numpy as np
    >>> from tconv import deblur
    >>> found = deblur.restore(np.full((32, 32, 3), 100, np.uint8), deblur.kernel("gaussian:1.5"))
    >>> found.x.shape, found.x.dtype, int(found.x.min()), int(found.x.max())
    ((32, 32, 3), dtype('uint8'), 100, 100)
    """
    image, taps = pixels_of(image), point(kernel)
    if method not in METHODS:
        raise ArgumentError("method", method, f"must be one of {', '.join(METHODS)}")
    pads = [(size // 2, (size - 1) // 2) for size in taps.shape]  # a convolution turns the kernel about its middle
    planes = np.moveaxis(image.reshape(*image.shape[:2], -1), -1, 0)[:, None]
    dtype = image.dtype if image.dtype.kind == "f" else np.float32 if image.dtype.itemsize < 4 else np.float64
    free = boundary == "free"
    found = deconvolve(planes.astype(dtype), taps[::-1, ::-1][None, None].astype(dtype), padding=0 if free else pads,
                       boundary="zero" if free else boundary, method=method, regularization=regularization, noise=noise,
                       penalty="laplacian" if method == "fourier" else "identity", iterations=iterations, tolerance=tolerance,
                       threads=threads, progress=progress)  # fmt: skip
    x = found.x[:, 0]
    if free:
        x = x[:, pads[0][0] :, pads[1][0] :][:, : image.shape[0], : image.shape[1]]
    return replace(found, x=rounded(np.moveaxis(x, 0, -1).reshape(image.shape).astype(np.float64), image.dtype))


def point(kernel: npt.ArrayLike) -> Array:
    """A blur kernel (height, width) in float64, made to sum to 1, or what is wrong with it.

    >>> point([[1, 2, 1]])
    array([[0.25, 0.5 , 0.25]])
    """
    taps: Array = as_array("kernel", kernel)
    if taps.ndim != 2 or not taps.size or taps.dtype.kind not in "fiub":
        raise ArgumentError(
            "kernel", f"{taps.dtype.name} array of shape {taps.shape}", "must hold real numbers with the axes (height, width)"
        )
    taps = taps.astype(np.float64)
    total = float(taps.sum())
    if not isfinite(total) or total <= 0:
        raise ArgumentError("kernel", total, "must have a finite sum above 0: it says where the light of a point goes")
    return taps / total


def kernel(text: str) -> Array:
    """A named blur, (height, width), summing to 1: "gaussian:SIGMA", "disk:RADIUS" (out of focus) or "motion:LENGTH:ANGLE" (shaken).

    Lengths are in pixels; the angle is in degrees, anticlockwise from the right, and 0 where it is not given.

    >>> kernel("motion:3").round(3)
    array([[0.333, 0.333, 0.333]])
    >>> kernel("disk:2").shape, kernel("gaussian:1.5").shape
    ((5, 5), (11, 11))
    """
    name, *words = text.split(":")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if name not in _DRAWN or len(numbers) not in _DRAWN[name][1] or not all(map(isfinite, numbers)) or numbers[0] <= 0:
        raise ArgumentError("kernel", text, "must be gaussian:SIGMA, disk:RADIUS or motion:LENGTH:ANGLE with numbers, lengths above 0")
    if numbers[0] > _LARGEST / 6:
        raise ArgumentError("kernel", text, f"is too large to draw: at most {_LARGEST // 6} pixels")
    return point(_DRAWN[name][0](*numbers))


def _gaussian(sigma: float) -> Array:
    at = np.arange(-ceil(3 * sigma), ceil(3 * sigma) + 1)
    line = np.exp(-(at**2) / (2 * sigma**2))
    return np.outer(line, line)


def _disk(radius: float) -> Array:
    at = _fine(ceil(radius - 0.5))
    return _coarse(np.add.outer(at**2, at**2) <= radius**2)


def _motion(length: float, angle: float = 0.0) -> Array:
    """Points along a line, each shared among the four pixels around it."""
    along = (np.arange(240) + 0.5) / 240 * length - length / 2
    rows, columns = -sin(radians(angle)) * along, cos(radians(angle)) * along
    if abs(sin(radians(angle))) < 1e-12 or abs(cos(radians(angle))) < 1e-12:  # along an axis every point lies in one pixel
        rows, columns = np.rint(rows), np.rint(columns)
    half = ceil(length / 2)
    drawn = np.zeros((2 * half + 3,) * 2)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1 - abs(rows - top - down)) * (1 - abs(columns - left - right))
        np.add.at(drawn, (top + down + half + 1, left + right + half + 1), share)
    return _trimmed(drawn)


def _fine(half: int) -> Array:
    """Points of the pixels -half .. half."""
    return np.asarray((np.arange((2 * half + 1) * _FINE) + 0.5) / _FINE - half - 0.5)


def _coarse(points: Array) -> Array:
    side = len(points) // _FINE
    return np.asarray(points.reshape(side, _FINE, side, _FINE).sum((1, 3)), np.float64)


def _trimmed(drawn: Array) -> Array:
    """Without the rows and columns of zeros, as many on both sides, so that the middle stays."""
    for axis in range(2):
        used = np.flatnonzero(drawn.sum(1 - axis) > 1e-9)
        cut = min(used[0], drawn.shape[axis] - 1 - used[-1])
        drawn = np.take(drawn, np.arange(cut, drawn.shape[axis] - cut), axis)
    return drawn


_DRAWN: dict[str, tuple[Callable[..., Array], tuple[int, ...]]] = {
    "gaussian": (_gaussian, (1,)),
    "disk": (_disk, (1,)),
    "motion": (_motion, (1, 2)),
}
