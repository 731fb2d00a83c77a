# SPDX-License-Identifier: Apache-2.0
"""What a deconvolution undoes: the linear map y = A x between arrays (N, channels, *size), and what lies beyond x.

With T the transposed convolution of `spec`, A is one of

    T                  the input of a transposed convolution is wanted
    transpose(T)       a convolution, zeros beyond x
    transpose(T) P     a convolution after P, which continues x beyond its border; T crops nothing then
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ._runtime import Array
from ._spec import ArgumentError, Axis, Spec

BOUNDARIES = ("zero", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Model:
    """A as data: the layer, its weight, and which of the three maps it is."""

    spec: Spec
    weight: Array
    transposed: bool = False
    boundary: str = "zero"
    pads: tuple[tuple[int, int], ...] = ()  # of P, per axis; negative where the end of x is never read

    @property
    def x_size(self) -> tuple[int, ...]:
        if self.transposed:
            return self.spec.input_size
        return tuple(size - lo - hi for size, (lo, hi) in zip(self.spec.output_size, self._pads(), strict=True))

    @property
    def x_shape(self) -> tuple[int, ...]:
        """(N, channels, *size) of x."""
        return (self.spec.batch, self.spec.in_channels if self.transposed else self.spec.out_channels, *self.x_size)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """(N, channels, *size) of y."""
        return self.spec.output_shape if self.transposed else self.spec.input_shape

    @property
    def unknowns(self) -> int:
        """Columns of A for one group of one sample: A couples no others."""
        return prod(self.x_shape[1:]) // self.spec.groups

    @property
    def equations(self) -> int:
        """Rows of A for one group of one sample."""
        return prod(self.y_shape[1:]) // self.spec.groups

    @property
    def circular(self) -> bool:
        """Whether the Fourier transform takes A apart: x is periodic, and its size is the stride times that of y."""
        size = tuple(axis.size * axis.stride for axis in self.spec.axes)
        return not self.transposed and self.boundary == "circular" and self.x_size == size

    @property
    def offsets(self) -> tuple[int, ...]:
        """Per axis, where the first tap lies before the first position of x."""
        return tuple(axis.lo + lo for axis, (lo, _) in zip(self.spec.axes, self._pads(), strict=True))

    def groups(self) -> Iterator[Model]:
        """Each group of one sample as a problem of its own."""
        spec, each = self.spec, self.spec.in_channels // self.spec.groups
        one = Spec(spec.axes, 1, each, spec.out_channels // spec.groups)
        return (replace(self, spec=one, weight=self.weight[first : first + each]) for first in range(0, spec.in_channels, each))

    def sources(self) -> list[Array]:
        """P: per axis, which position of x each position of the continued x is."""
        return [positions(size, *pad, self.boundary) for size, pad in zip(self.x_size, self._pads(), strict=True)]

    def unread(self) -> int:
        """How many values of x, in one group of one sample, no value of y depends on."""
        read = []
        for axis, source in zip(self.spec.axes, self.sources(), strict=True):
            inputs, outputs, _ = links(axis)
            read.append(len(np.unique(inputs if self.transposed else source[outputs])))
        return self.unknowns // prod(self.x_size) * (prod(self.x_size) - prod(read))

    def _pads(self) -> Sequence[tuple[int, int]]:
        return self.pads or [(0, 0)] * self.spec.rank


def convolution(spec: Spec, weight: Array, boundary: str = "zero") -> Model:
    """The convolution whose adjoint `spec` is, with x continued by `boundary` over what the padding adds."""
    if boundary not in BOUNDARIES:
        raise ArgumentError("boundary", boundary, f"must be one of {', '.join(BOUNDARIES)}")
    if boundary == "zero":
        return Model(spec, weight)
    bare = Spec(tuple(Axis(a.size, a.kernel, a.stride, a.dilation) for a in spec.axes), spec.batch, spec.in_channels,
                spec.out_channels, spec.groups)  # fmt: skip
    return Model(bare, weight, boundary=boundary, pads=spec.crop)


def positions(size: int, lo: int, hi: int, boundary: str) -> Array:
    """Which position of x each of -lo .. size + hi - 1 takes its value from.

    >>> [positions(4, 3, 2, boundary).tolist() for boundary in ("reflect", "replicate", "circular")]
    [[3, 2, 1, 0, 1, 2, 3, 2, 1], [0, 0, 0, 0, 1, 2, 3, 3, 3], [1, 2, 3, 0, 1, 2, 3, 0, 1]]
    """
    at = np.arange(-lo, size + hi)
    if boundary == "circular":
        return at % size
    if boundary == "reflect":
        at %= max(2 * size - 2, 1)
        return np.minimum(at, 2 * size - 2 - at)
    return np.clip(at, 0, size - 1)


def extend(x: Array, sources: Sequence[Array]) -> Array:
    """P x, axis by axis."""
    for axis, source in enumerate(sources, start=2):
        x = np.take(x, source, axis)
    return x


def fold(full: Array, sources: Sequence[Array], size: Sequence[int]) -> Array:
    """The adjoint of `extend`: what lies beyond the border is added to the positions that it came from."""
    for axis, (source, extent) in enumerate(zip(sources, size, strict=True), start=2):
        rows = np.moveaxis(full, axis, 0)
        first, folded = np.unique(source, return_index=True)[1], np.zeros((extent, *rows.shape[1:]), full.dtype)
        folded[source[first]] = rows[first]
        for again in np.setdiff1d(np.arange(len(source)), first):  # a few rows: twice the padding
            folded[source[again]] += rows[again]
        full = np.moveaxis(folded, 0, axis)
    return np.ascontiguousarray(full)


def links(axis: Axis) -> tuple[Array, Array, Array]:
    """(input, output, tap) of every product of one axis that the crop keeps: equation (1) of `_spec`, written out."""
    inputs, taps = np.indices((axis.size, axis.kernel)).reshape(2, -1)
    outputs = inputs * axis.stride + taps * axis.dilation - axis.lo
    kept = (outputs >= 0) & (outputs < axis.output)
    return inputs[kept], outputs[kept], taps[kept]


def norm(a: Array) -> float:
    """The 2-norm in float64. Not BLAS's, which wakes its threads for it: 4 ms on a busy machine, where the sum takes 0.2."""
    return float(np.sqrt(np.square(a, dtype=np.float64).sum()))
