# SPDX-License-Identifier: Apache-2.0
"""Which method solves a deconvolution, with how much regularisation, and what is to be said about its answer."""

from __future__ import annotations

import warnings
from functools import partial
from math import log, prod, sqrt
from typing import Any

import numpy as np
import scipy.fft

from ._iterate import KRYLOV, Found, Task, least_squares, noise_level, richardson_lucy, sparse, total_variation
from ._method import LINEAR, Deconvolution, Evidence, Wish
from ._model import Model, norm
from ._posed import DENSE, Posedness, posedness
from ._regularize import choose
from ._runtime import Array
from ._spec import ArgumentError
from ._spectrum import Dense, Fourier, Spectrum

_SOUND = 1e3  # the condition up to which an answer without regularisation is taken: noise of 1/1000 may then be all of it
_TOLERANCE = {8: 1e-13}  # and 1e-6
_ITERATIONS = {"richardson_lucy": 30, "tv": 300, "l1": 500}
_MATRICES = 2**24  # values of all frequencies' matrices, up to which "auto" takes them apart


def solve(wish: Wish, model: Model, y: Array, itemsize: int) -> Deconvolution:
    """x from y, both (N, channels, *size); `itemsize` is that of the caller's y, whose rounding is the least noise."""
    method = _method(model) if wish.method == "auto" else wish.method
    if wish.regularization == "lcurve" and method in KRYLOV:  # the few numbers that Krylov steps find bend elsewhere
        raise ArgumentError("regularization", "lcurve", f"needs singular values, which {method} does not compute: take gcv or discrepancy")
    spectrum: Spectrum | None = Dense(model) if method == "dense" else None
    if method == "fourier" and model.circular:
        spectrum = Fourier(model, model.spec.input_size, y.dtype, wish.penalty)
    linear = method in LINEAR
    tolerance = (_TOLERANCE.get(itemsize, 1e-6) if linear else 1e-4) if wish.tolerance is None else wish.tolerance
    iterations = wish.iterations or _ITERATIONS.get(method, min(2000, max(100, 10 * model.unknowns)))
    noise = noise_level(y) if method in ("tv", "l1") and wish.noise is None else wish.noise
    task = Task(model, y, iterations, tolerance, noise, wish.progress, wish.threads)
    posed = posedness(model, spectrum) if method == "dense" or (linear and wish.undecided) else None
    found = _run(method, task, spectrum, _weight(wish, posed) if linear else wish.regularization, wish.penalty)
    evidence = Evidence(partial(_residual, model, y, found.x, wish.threads), partial(_examine, model, method, y.dtype), posed)
    answer = Deconvolution(found.x, found.iterations, found.converged, method, found.weight, noise, evidence)
    if linear:
        _warn(answer)
    return answer


def _residual(model: Model, y: Array, x: Array, threads: int | None) -> float:
    size = norm(y)
    return Task(model, y, 0, 0, threads=threads).misfit(x) / size if size else 0.0


def _examine(model: Model, method: str, dtype: Any) -> Posedness:
    circular = method == "fourier" and model.circular
    return posedness(model, Fourier(model, model.spec.input_size, dtype, vectors=False) if circular else None)


def _method(model: Model) -> str:
    spec = model.spec
    matrices = prod(model.y_shape[1:]) * spec.out_channels // spec.groups * prod(spec.stride)
    if model.circular and matrices <= _MATRICES:
        return "fourier"
    return "dense" if max(model.unknowns, model.equations) <= DENSE else "lsmr"


def _weight(wish: Wish, posed: Posedness | None) -> float | str:
    """The weight or the rule that chooses it."""
    if wish.regularization is not None:
        return wish.regularization if isinstance(wish.regularization, str) else float(wish.regularization)
    if posed is None or wish.noise is not None:
        return "discrepancy"
    return 0.0 if posed.condition <= _SOUND else "gcv"


def _run(method: str, task: Task, spectrum: Spectrum | None, weight: Any, penalty: str) -> Found:
    if method in KRYLOV:
        return least_squares(task, weight, method)
    if method == "richardson_lucy":
        for name, values in (("kernel", task.model.weight), ("y", task.y)):
            if values.min() < 0:
                raise ArgumentError(name, float(values.min()), "must not be negative for richardson_lucy: clip it, or take another method")
        return richardson_lucy(task)
    if method == "tv":
        return total_variation(task, weight)
    if method == "l1":
        column = float(np.linalg.norm(task.model.weight)) / sqrt(task.model.spec.out_channels // task.model.spec.groups)
        universal = 2 * (task.noise or 0.0) * sqrt(2 * log(max(2, prod(task.model.x_shape)))) * column
        return sparse(task, universal if weight is None else float(weight))
    return _filtered(task, spectrum, weight, penalty)


def _filtered(task: Task, spectrum: Spectrum | None, weight: float | str, penalty: str) -> Found:
    """By a filter on singular values: of A, or of its circular neighbour on y continued."""
    y, model = task.y, task.model
    sample, share = y, 1.0
    if spectrum is None:
        y = continued(model, y)
        spectrum = Fourier(model, y.shape[2:], y.dtype, penalty)
        if isinstance(weight, str):
            sample, share = faded(task.y, y.shape)
    seen = spectrum.analyse(y)
    if isinstance(weight, str):
        parts = seen if sample is y else spectrum.analyse(sample)
        weight = choose(spectrum.coefficients(sample, parts), weight, task.goal() * share)
    x = spectrum.solve(seen, weight)
    inside: Any = (..., *map(slice, model.x_size))
    return Found(np.ascontiguousarray(x[inside]), 0, True, weight)


def faded(y: Array, shape: tuple[int, ...]) -> tuple[Array, float]:
    """y faded to 0 at its borders, where it is no circular convolution, and the share of white noise's norm that this keeps."""
    share, total = 1.0, np.zeros(shape, y.dtype)
    total[tuple(map(slice, y.shape))] = y
    for axis in range(2, y.ndim):
        window = np.hanning(y.shape[axis] + 2)[1:-1].astype(y.dtype)
        total[tuple(map(slice, y.shape))] *= window.reshape([-1 if a == axis else 1 for a in range(y.ndim)])
        share *= float((window.astype(np.float64) ** 2).mean())
    return total, sqrt(share)


def continued(model: Model, y: Array) -> Array:
    """y continued at its end until it is periodic and smooth: its mirror image at the end, fading into that at the start."""
    if set(model.spec.stride) != {1} or model.transposed:
        raise ArgumentError(
            "method", "fourier", "needs stride 1, or boundary='circular' and an x of stride times the size of y", model.spec
        )
    for number, (axis, size) in enumerate(zip(model.spec.axes, model.x_size, strict=True), start=2):
        rows = np.moveaxis(y, number, 0)
        total = scipy.fft.next_fast_len(max(size, axis.size + 2 * axis.extent), real=True)
        more = np.arange(total - axis.size)
        after, before = rows[np.clip(axis.size - 1 - more, 0, None)], rows[np.clip(more[::-1], None, axis.size - 1)]
        column = more.reshape(-1, *(1,) * (rows.ndim - 1))
        if model.boundary == "zero" and axis.lo + axis.hi > 0:  # y sinks to 0 beyond, and has gone half the way at the border
            reach = axis.extent // 2 + 1
            after = np.where(column < reach, 2 * rows[-1] - after, 0)
            before = np.where(column[::-1] < reach, 2 * rows[0] - before, 0)
        share = ((column + 1) / (len(more) + 1)).astype(y.dtype)
        y = np.moveaxis(np.concatenate([rows, (1 - share) * after + share * before]), 0, number)
    return np.ascontiguousarray(y)


def _warn(answer: Deconvolution) -> None:
    """No noise in silence."""
    if not answer.converged:
        warnings.warn(f"{answer.method} did not converge in {answer.iterations} iterations: residual {answer.residual:.3g}, condition "
                      f"{answer.posedness.condition:.3g}; allow more, or regularize", RuntimeWarning, stacklevel=5)  # fmt: skip
    if answer.regularization == 0 and answer.posedness.condition > _SOUND:
        warnings.warn(f"the answer may be mostly noise: errors of y grow up to {answer.posedness.condition:.3g} times, and nothing holds "
                      "them back with regularization=0", RuntimeWarning, stacklevel=5)  # fmt: skip
