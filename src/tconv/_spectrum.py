# SPDX-License-Identifier: Apache-2.0
"""A taken apart into singular values: by a dense decomposition where it is small, by the Fourier transform where it is circular.

Per group of channels, a circular convolution with stride s is, at every frequency of y, a small matrix: it mixes the frequencies of x that
differ by multiples of the size of y, which sampling every s-th position folds onto one another. With unitary transforms F and S = prod(s):

    Y(f)[ci] = sum over co, aliases a of conj(W[ci, co](f + a size)) / sqrt(S) * X(f + a size)[co]

(Vaidyanathan, "Multirate Systems and Filter Banks", 1993, section 4.1; for stride 1, Gray, "Toeplitz and Circulant Matrices", 2006.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import numpy as np
import scipy.fft
import scipy.linalg

from ._linear import model_matrix
from ._model import Model
from ._regularize import Coefficients, binned
from ._runtime import Array


class Spectrum:
    """A = U diag(sigma) V*: `analyse(y)` is sigma U* y, `synthesise(c)` is V c, with the axes (N, groups, ..., rank) throughout.

    sigma: (groups, ..., rank)     count: how many coefficients each stands for, broadcast to sigma     smooth: |L|^2 in V, likewise
    """

    sigma: Array
    count: Array
    smooth: Array
    equations: int

    def analyse(self, y: Array) -> Array:
        raise NotImplementedError

    def synthesise(self, coefficients: Array) -> Array:
        raise NotImplementedError

    def null(self) -> Array:
        """Which singular values are zero up to rounding."""
        least = self.sigma.max(initial=0.0) * np.finfo(self.sigma.dtype).eps * max(self.sigma.shape[-1], 50)
        return np.asarray(self.sigma <= least)

    def coefficients(self, y: Array, seen: Array) -> Coefficients:
        """What the choice of a weight needs to know of y, which `analyse` has seen; all samples share one weight."""
        samples, kept, some = len(y), ~self.null(), self.sigma > 0
        squares = np.where(some, self.sigma.astype(np.float64) ** 2, 1)
        power = np.where(some, (np.abs(seen) ** 2).sum(0, dtype=np.float64) * self.count / squares, 0)
        whole = samples * float(np.broadcast_to(self.count, some.shape)[some].sum()) >= y.size
        outside = 0.0 if whole else max(float((y.astype(np.float64) ** 2).sum()) - float(power.sum()), 0.0)
        smooth = np.maximum(self.smooth.astype(np.float64), 1e-9 * float(self.smooth.max()))  # |L|^2 is 0 for constants, which stay
        sigma = np.where(kept, np.sqrt(squares / smooth), 0)
        count = np.broadcast_to(self.count * samples, sigma.shape)
        return binned(sigma.ravel(), power.ravel(), count.ravel(), outside, y.size)

    def solve(self, seen: Array, weight: float) -> Array:
        """Tikhonov's x; with weight 0 the least-squares solution of minimum norm. Overwrites what `analyse` gave."""
        scale = self.sigma**2 + weight * self.smooth
        scale[self.null()] = np.inf
        seen /= scale
        return self.synthesise(seen)


class Dense(Spectrum):
    """By LAPACK, for small problems of any geometry: exact null spaces, and the smallest singular values as they are."""

    def __init__(self, model: Model) -> None:
        parts = [scipy.linalg.svd(model_matrix(group).toarray().astype(np.float64), full_matrices=False) for group in model.groups()]
        self._model = model
        self._u, self.sigma, self._vt = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        self._u *= self.sigma[:, None]
        self.count, self.smooth = np.ones(1), np.ones(1)

    def analyse(self, y: Array) -> Array:
        return np.asarray(np.einsum("gmr,ngm->ngr", self._u, y.reshape(len(y), len(self._u), -1)))

    def synthesise(self, coefficients: Array) -> Array:
        return np.asarray(np.einsum("grn,bgr->bgn", self._vt, coefficients)).reshape(self._model.x_shape)

    def null(self) -> Array:
        """As `numpy.linalg.matrix_rank` and `lstsq` count it."""
        most = max(self._model.unknowns, self._model.equations)
        return np.asarray(self.sigma <= self.sigma.max(initial=0.0) * np.finfo(np.float64).eps * most)


@dataclass(frozen=True)
class Grid:
    """The frequencies at which a layer is looked at: `size` of y per axis, times `stride` of x."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    half: bool  # real transforms keep one of two conjugate frequencies, where no axis has aliases

    @property
    def full(self) -> tuple[int, ...]:
        return tuple(n * s for n, s in zip(self.size, self.stride, strict=True))

    def transform(self, values: Array) -> Array:
        """Unitary, over the last axes; as many workers as processors."""
        axes = tuple(range(-len(self.size), 0))
        run = scipy.fft.rfftn if self.half else scipy.fft.fftn
        return np.asarray(run(values, axes=axes, norm="ortho", workers=-1))

    def back(self, values: Array, size: Sequence[int]) -> Array:
        axes = tuple(range(-len(self.size), 0))
        if self.half:
            return np.asarray(scipy.fft.irfftn(values, size, axes=axes, norm="ortho", workers=-1))
        return np.asarray(scipy.fft.ifftn(values, axes=axes, norm="ortho", workers=-1)).real

    def count(self) -> Array:
        """How many frequencies of the whole grid each kept one stands for."""
        if not self.half:
            return np.ones(self.size)
        last = np.full(self.size[-1] // 2 + 1, 2.0)
        last[0] = 1
        if self.size[-1] % 2 == 0:
            last[-1] = 1
        return np.broadcast_to(last, (*self.size[:-1], len(last)))

    def split(self, values: Array) -> Array:
        """(..., C, *full) -> (..., *size, C * aliases): frequencies that fold onto one another side by side."""
        rank, lead = len(self.size), values.ndim - len(self.size)
        kept = values.shape[lead:] if self.half else self.size
        parts = values.reshape(*values.shape[:lead], *(n for pair in zip(self.stride, kept, strict=True) for n in pair))
        order = [*range(lead - 1), *range(lead + 1, lead + 2 * rank, 2), lead - 1, *range(lead, lead + 2 * rank, 2)]
        return parts.transpose(order).reshape(*values.shape[: lead - 1], *kept, -1)

    def join(self, values: Array, channels: int) -> Array:
        """The inverse of `split`."""
        rank = len(self.size)
        lead = values.ndim - rank - 1
        kept = values.shape[lead : lead + rank]
        parts = values.reshape(*values.shape[:-1], channels, *self.stride)
        order = [*range(lead), lead + rank, *(at for axis in range(rank) for at in (lead + rank + 1 + axis, lead + axis))]
        return parts.transpose(order).reshape(*values.shape[:lead], channels, *(s * n for s, n in zip(self.stride, kept, strict=True)))


def symbol(model: Model, grid: Grid, dtype: Any = np.float64) -> Array:
    """(groups, *frequencies, Cin / g, Cout / g * aliases): the matrices of the module's formula for the convolution."""
    spec, groups = model.spec, model.spec.groups
    laid = np.zeros((spec.in_channels, spec.out_channels // groups, *grid.full), dtype)
    places = [(np.arange(a.kernel) * a.dilation - offset) % n for a, offset, n in zip(spec.axes, model.offsets, grid.full, strict=True)]
    where: Any = (slice(None), slice(None), *np.ix_(*places))
    np.add.at(laid, where, model.weight)  # taps may meet on a small grid
    waves = grid.transform(laid)
    waves *= sqrt(prod(grid.full) / prod(grid.stride))
    found = grid.split(np.conj(waves, out=waves))
    return np.moveaxis(found.reshape(groups, -1, *found.shape[1:]), 1, -2)


class Fourier(Spectrum):
    """By the Fourier transform, for a circular convolution of y's of `size`; with one channel nothing but division is left."""

    def __init__(self, model: Model, size: tuple[int, ...], dtype: Any, penalty: str = "identity", vectors: bool = True) -> None:
        self._model = model
        self._grid = grid = Grid(size, model.spec.stride, half=set(model.spec.stride) == {1})
        self._each = model.spec.out_channels // model.spec.groups
        matrices = symbol(model, grid, dtype)
        if vectors:
            self._u, self.sigma, self._v = factored(matrices)
        else:
            self.sigma = np.linalg.svd(matrices, compute_uv=False) if min(matrices.shape[-2:]) > 1 else factored(matrices)[1]
        self.count = grid.count()[..., None]
        self.smooth = laplacian(grid, dtype)[..., None] if penalty == "laplacian" else np.ones(1, dtype)

    def analyse(self, y: Array) -> Array:
        waves = self._grid.transform(y)
        waves = waves.reshape(len(y), self._model.spec.groups, -1, *waves.shape[2:])
        waves = np.moveaxis(waves, 2, -1)
        return waves * np.conj(self._u[..., 0]) if self._u.shape[-2:] == (1, 1) else _apply(np.conj(np.swapaxes(self._u, -1, -2)), waves)

    def synthesise(self, coefficients: Array) -> Array:
        one = self._v.shape[-2:] == (1, 1)
        waves = coefficients if one else _apply(self._v, coefficients)  # factored: V of a single number is 1
        waves = self._grid.join(waves, self._each)
        return self._grid.back(waves.reshape(len(waves), -1, *waves.shape[3:]), self._grid.full)


def _apply(matrices: Array, vectors: Array) -> Array:
    return np.asarray(np.matmul(matrices, vectors[..., None]))[..., 0]


def factored(matrices: Array) -> tuple[Array, Array, Array]:
    """(U sigma, sigma, V) of many small matrices; a row or a column needs no decomposition."""
    rows, columns = matrices.shape[-2:]
    if min(rows, columns) > 1:
        u, sigma, vh = np.linalg.svd(matrices, full_matrices=False)
        return u * sigma[..., None, :], sigma, np.conj(np.swapaxes(vh, -1, -2))
    sigma = np.sqrt((matrices.real**2 + matrices.imag**2).sum((-2, -1)))[..., None]
    if columns == 1:
        return matrices, sigma, np.ones((1, 1), matrices.dtype)
    unit = np.divide(matrices, sigma[..., None], out=np.zeros_like(matrices), where=sigma[..., None] > 0)
    return sigma[..., None], sigma, np.conj(np.swapaxes(unit, -1, -2))


def laplacian(grid: Grid, dtype: Any) -> Array:
    """|L|^2 for the second differences, summed over the axes: 2 - 2 cos of each frequency."""
    size = grid.full
    total = np.zeros((1,) * len(size), dtype)
    for axis, n in enumerate(size):
        waves = np.arange(n // 2 + 1 if grid.half and axis == len(size) - 1 else n) / n
        total = total + (2 - 2 * np.cos(2 * np.pi * waves)).astype(dtype).reshape([-1 if a == axis else 1 for a in range(len(size))])
    return total**2
