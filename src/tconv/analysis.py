# SPDX-License-Identifier: Apache-2.0
"""Checkerboards: where a layer's geometry and weight make them, how strong they are in a picture, and weights that make none.

Outputs of one stride phase read the same taps, those of another phase other taps. Where phases have different numbers of taps, or taps of
different sums, even a constant input comes out as a pattern that repeats every `stride` outputs (Odena, Dumoulin and Olah, "Deconvolution
and checkerboard artifacts", Distill 2016). `overlap` counts the taps, `checkerboard` sums them, `spectral_peak` looks for the pattern in
pictures. A weight whose phase sums are equal keeps constants constant (Sugawara, Shiota and Kiya, "Super-resolution using convolutional
neural networks without any checkerboard artifacts", 2018): `checkerboard_free` makes one of any weight, `icnr` one whose phases are equal
throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ._problem import weight_axes
from ._runtime import Array, as_array, check_memory
from ._spec import ArgumentError, Axis, Ints, Spec, at_least_one, clip, integers

_LEAST = 4  # periods of a pattern in a picture, so that something lies between two of its frequencies


@dataclass(frozen=True)
class Overlap:
    """How many products every output is the sum of, for each input channel.

    counts: (*output_size), int64, the border included
    phases: (*stride), int64, the outputs o with (o + lo) mod stride = index, as far from the border as all their taps need
    uniformity: the smallest of `phases` over the largest; 1 where all outputs get equally many, 0 where some get none
    """

    counts: Array = field(repr=False)
    phases: Array
    uniformity: float

    def __str__(self) -> str:
        fewest, most = self.phases.min(), self.phases.max()
        return (
            f"{fewest} products an output" if fewest == most else f"{fewest} to {most} products an output, uniformity {self.uniformity:.3g}"
        )


def overlap(spec: Spec) -> Overlap:
    """Count the pairs (input, tap) that meet at every output of a geometry: equation (1) of the documentation's Concepts.

    spec: the problem; its batch and channels do not matter

    Raises ArgumentError where the counts do not fit into memory.

    >>> found = overlap(Spec.parse("c1:1 i3 k3 s2"))
    >>> found.counts, found.phases
    (array([1, 1, 2, 1, 2, 1, 1]), array([2, 1]))
    >>> print(overlap(Spec.parse("c64:32 i8x8 k3 s2")))
    1 to 4 products an output, uniformity 0.25
    >>> print(overlap(Spec.parse("c64:32 i8x8 k4 s2 p1")))
    4 products an output
    """
    for shape in (spec.output_size, spec.stride):
        check_memory(shape, 8, spec)
    counts = reduce(np.multiply.outer, map(_counts, spec.axes))
    phases = reduce(np.multiply.outer, (np.array([len(phase.taps) for phase in axis.phases()]) for axis in spec.axes))
    return Overlap(counts, phases, float(phases.min() / phases.max()))


def _counts(axis: Axis) -> Array:
    """The products of every output of one axis: a tap reaches one output for each input, `stride` apart."""
    counts = np.zeros(axis.output, np.int64)
    for tap in range(axis.kernel):
        start = tap * axis.dilation - axis.lo
        reached = clip(range(start, start + (axis.size - 1) * axis.stride + 1, axis.stride), axis.output)
        counts[reached.start : reached.stop : reached.step] += 1
    return counts


@dataclass(frozen=True)
class Checkerboard:
    """What constant inputs become away from the border: one value for each stride phase.

    sums: (in_channels, out_channels / groups, *stride), float64, what an input channel of ones adds to the outputs of a phase
    spectrum: shaped as `sums`, magnitudes of its discrete Fourier transform over the phases, divided by their number: the mean of the
        phases first, then the amplitudes of the waves that repeat every stride
    amplitude: the root mean square of what deviates from the phases' mean, over that of the phases; 0 means no checkerboard, 1 nothing else
    """

    sums: Array
    spectrum: Array = field(repr=False)
    amplitude: float

    def __str__(self) -> str:
        return f"checkerboard of {self.amplitude:.1%} of what a constant input gives"


def checkerboard(w: npt.ArrayLike, *, stride: Ints, dilation: Ints = 1) -> Checkerboard:
    """The response of a layer's weight to constant inputs, and how much of it is a checkerboard.

    w: (in_channels, out_channels / groups, *kernel_size), real numbers

    `sums` added over the input channels of a group are what an input of ones gives. `amplitude` is for constants that are independent from
    channel to channel, so that no two channels cancel. Raises ArgumentError for arguments that do not fit.

    >>> found = checkerboard(np.ones((1, 1, 3)), stride=2)
    >>> found.sums, found.spectrum, round(found.amplitude, 3)
    (array([[[2., 1.]]]), array([[[1.5, 0.5]]]), 0.316)
    >>> print(checkerboard(np.ones((1, 1, 4, 4)), stride=2))
    checkerboard of 0.0% of what a constant input gives
    """
    taps, strides, homes = _weight(w, stride, dilation)
    sums = _phase_sums(taps.astype(np.float64), strides, homes)
    axes = tuple(range(2, sums.ndim))
    whole = np.sqrt(np.square(sums).sum())
    deviating = np.sqrt(np.square(sums - sums.mean(axes, keepdims=True)).sum())
    return Checkerboard(sums, np.abs(np.fft.fftn(sums, axes=axes, norm="forward")), float(deviating / whole) if whole else 0.0)


def checkerboard_free(w: npt.ArrayLike, *, stride: Ints, dilation: Ints = 1) -> Array:
    """The weight with the same mean response whose phase sums are all equal, nearest to `w`: a layer to start training from.

    w: (in_channels, out_channels / groups, *kernel_size), float32 or float64        result: as w

    Each phase's taps share what its sum lacks, so the layer keeps constants constant. Training may bring the pattern back. Raises
    ArgumentError for arguments that do not fit, and where a phase has no taps, which no weight can mend.

    >>> checkerboard_free(np.ones((1, 1, 3)), stride=2)
    array([[[0.75, 1.5 , 0.75]]])
    """
    taps, strides, homes = _weight(w, stride, dilation)
    if taps.dtype not in (np.float32, np.float64):
        raise ArgumentError("w", taps.dtype.name, "must be float32 or float64")
    numbers = [np.bincount(home, minlength=s) for home, s in zip(homes, strides, strict=True)]
    if not all(map(np.all, numbers)):
        raise ArgumentError("stride", strides, f"leaves outputs without a tap of a kernel of {taps.shape[2:]} with dilation={dilation}")
    sums = _phase_sums(taps.astype(np.float64), strides, homes)
    lacking = sums.mean(tuple(range(2, sums.ndim)), keepdims=True) - sums
    share = lacking / reduce(np.multiply.outer, numbers)
    free: Array = taps + share[(slice(None), slice(None), *np.ix_(*homes))]
    return free.astype(taps.dtype)


def icnr(w: npt.ArrayLike, *, stride: Ints) -> Array:
    """Every tap of a small kernel, `stride` times on each axis: a layer whose phases are equal, so that it starts as nearest neighbour.

    w: (in_channels, out_channels / groups, *kernel_size), initialised as for stride 1
    result: (in_channels, out_channels / groups, *(kernel_size * stride)), of the same type

    With it and this stride the full output is that of `w` with stride 1, each value `stride` times. This is ICNR (Aitken et al.,
    "Checkerboard artifact free sub-pixel convolution", arXiv:1707.02937, 2017) for a transposed convolution. Raises ArgumentError for
    arguments that do not fit.

    >>> icnr([[[1.0, 2.0]]], stride=2)
    array([[[1., 1., 2., 2.]]])
    """
    taps, strides, _ = _weight(w, stride, 1)
    check_memory((*taps.shape[:2], *(k * s for k, s in zip(taps.shape[2:], strides, strict=True))), taps.itemsize, None)
    for axis, times in enumerate(strides, 2):
        taps = np.repeat(taps, times, axis)
    return taps


def spectral_peak(images: npt.ArrayLike, *, stride: Ints) -> float:
    """The power of pictures at the frequencies of a pattern that repeats every `stride` pixels, over that of the frequencies around them.

    images: (..., height, width), real numbers; the power of several is averaged, so that one picture's texture counts less

    The frequencies are the multiples of 1 / stride on both axes, but for zero. A Hann window keeps the border out of it, and spreads a peak
    over the frequencies beside it, so the neighbours lie 2 and 3 steps away. 1 means no peak. A pattern of amplitude a in white noise of
    standard deviation d, (-1)^row a with stride (2, 1), gives 1 + 4 / 9 * height * width * (a / d)^2. Rows and columns beyond a multiple
    of the stride are left out. Raises ArgumentError for pictures of less than 4 strides a side, and for arguments that do not fit.

    >>> noise = np.random.default_rng(0).standard_normal((100, 32, 32))
    >>> pattern = (-1.0) ** np.indices((32, 32)).sum(0)
    >>> [round(spectral_peak(noise + amplitude * pattern, stride=2)) for amplitude in (0, 0.5, 1)]
    [1, 39, 153]
    """
    pictures, strides = as_array("images", images), integers("stride", stride, 2)
    at_least_one("stride", strides)
    if pictures.ndim < 2 or not pictures.size or pictures.dtype.kind not in "fiub" or not np.isfinite(pictures).all():
        raise ArgumentError("images", f"{pictures.dtype.name} array of shape {pictures.shape}",
                            "must hold finite real numbers with the axes (..., height, width)")  # fmt: skip
    if max(strides) == 1:
        raise ArgumentError("stride", stride, "must be above 1 on an axis: with 1 there is no pattern to find")
    size = tuple(extent // s * s for extent, s in zip(pictures.shape[-2:], strides, strict=True))
    if any(extent < _LEAST * s for extent, s in zip(size, strides, strict=True) if s > 1):
        raise ArgumentError("images", pictures.shape, f"must have at least {_LEAST} * stride = {tuple(_LEAST * s for s in strides)} pixels")
    windows = (np.sin(np.pi * np.arange(extent) / extent) ** 2 for extent in size)
    values = pictures[..., : size[0], : size[1]] * reduce(np.multiply.outer, windows)
    power = np.square(np.abs(np.fft.fft2(values))).reshape(-1, *size).mean(0)
    floor = np.finfo(np.float64).eps ** 2 * power.sum() + np.finfo(np.float64).tiny  # rounding is no pattern
    peaks = set(product(*(range(0, extent, extent // s) for extent, s in zip(size, strides, strict=True))))
    spread = {at for peak in peaks for at in _around(peak, size, 1)}
    found = [(power[at], np.mean([power[near] for near in _around(at, size, 3) - spread])) for at in sorted(peaks - {(0, 0)})]
    high, around = np.sum(found, axis=0)
    return float((high + floor) / (around + floor))


def _around(at: tuple[int, ...], size: tuple[int, ...], steps: int) -> set[tuple[int, ...]]:
    """The frequencies at most so many steps away on each axis, itself among them; they go round at the ends."""
    return {tuple((a + s) % n for a, s, n in zip(at, step, size, strict=True)) for step in product(range(-steps, steps + 1), repeat=2)}


def _weight(w: Any, stride: Any, dilation: Any) -> tuple[Array, tuple[int, ...], list[Array]]:
    """A weight, its strides, and for each axis the phase that every tap belongs to, once all are known to fit."""
    taps: Array = as_array("w", w)
    kernel = weight_axes(taps.shape, 1)[1]
    if not taps.size or taps.dtype.kind not in "fiub" or not np.isfinite(taps).all():
        raise ArgumentError("w", f"{taps.dtype.name} array of shape {taps.shape}", "must hold finite real numbers, at least one")
    strides, dilations = integers("stride", stride, len(kernel)), integers("dilation", dilation, len(kernel))
    at_least_one("stride", strides)
    at_least_one("dilation", dilations)
    check_memory((*taps.shape[:2], *strides), 8, None)
    return taps, strides, [np.arange(k) * (d % s) % s for k, s, d in zip(kernel, strides, dilations, strict=True)]


def _phase_sums(taps: Array, strides: tuple[int, ...], homes: list[Array]) -> Array:
    """(in_channels, out_channels / groups, *stride): the taps of each phase added up, one axis after the other."""
    for axis, (s, home) in enumerate(zip(strides, homes, strict=True), 2):
        folded = np.zeros((s, *np.moveaxis(taps, axis, 0).shape[1:]))
        np.add.at(folded, home, np.moveaxis(taps, axis, 0))
        taps = np.moveaxis(folded, 0, axis)
    return taps
