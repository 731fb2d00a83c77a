# SPDX-License-Identifier: Apache-2.0
"""The solvers that call the layer's own kernels again and again: SciPy's for least squares, PyLops' for L1 and total variation, and
Richardson and Lucy's, each as one function that returns x, how many iterations it took, and whether it converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse.linalg as krylov

from ._linear import linear_operator
from ._model import Model, extend, fold, norm
from ._operator import Operator
from ._regularize import Coefficients, choose
from ._runtime import Array


class Found(NamedTuple):
    x: Array
    iterations: int
    converged: bool
    weight: float = 0.0  # of the penalty


@dataclass
class Task:
    """What every solver is given: A by its kernels, y, when to stop, and whom to tell of each iteration."""

    model: Model
    y: Array
    iterations: int
    tolerance: float
    noise: float | None = None
    progress: Callable[[int], None] | None = None
    threads: int | None = None
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        model, spec = self.model, self.model.spec
        op = Operator(model.weight, stride=spec.stride, padding=spec.crop, dilation=spec.dilation, groups=spec.groups, threads=self.threads)
        sources = model.sources() if model.pads else None

        def convolve(x: Array) -> Array:
            return op.T(x if sources is None else extend(x, sources), input_size=spec.input_size)

        def spread(y: Array) -> Array:
            return op(y) if sources is None else fold(op(y), sources, model.x_size)

        maps: tuple[Callable[[Array], Array], Callable[[Array], Array]] = (op, convolve) if model.transposed else (convolve, spread)
        self.forward, self.adjoint = maps

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done)

    def operator(self) -> Any:
        """A for SciPy: products with its adjoint count as iterations."""

        def adjoint(y: Array) -> Array:
            self.step()
            return self.adjoint(y)

        return linear_operator(self.forward, adjoint, self.model.x_shape, self.model.y_shape, self.model.weight.dtype)

    def misfit(self, x: Array) -> float:
        """|A x - y|."""
        return norm(self.forward(x) - self.y)

    def goal(self) -> float:
        """|A x - y| when what is left is noise."""
        return (self.noise or 0.0) * float(np.sqrt(self.y.size))


def least_squares(task: Task, weight: float | str, method: str) -> Found:
    """min |A x - y|^2 + weight |x|^2, from x = 0, so that with weight 0 the answer is the one of minimum norm."""
    if isinstance(weight, str):
        found = bidiagonal(task, weight)
        short = len(found.sigma) == _STEPS[weight]  # y is not explained up to its noise yet: then its prediction decides
        weight = choose(found, weight, task.goal()) or (choose(found, "gcv", 0.0) if short else 0.0)
    task.done = 0
    x, iterations, converged = _KRYLOV[method](task, float(np.sqrt(weight)))
    return Found(x.reshape(task.model.x_shape), iterations, converged, weight)


def _lsmr(task: Task, damp: float) -> tuple[Array, int, bool]:
    x, stop, iterations, *_ = krylov.lsmr(task.operator(), task.y.ravel(), damp, task.tolerance, task.tolerance, 0, task.iterations)
    return x, iterations, stop in (0, 1, 2, 4, 5)


def _lsqr(task: Task, damp: float) -> tuple[Array, int, bool]:
    x, stop, iterations, *_ = krylov.lsqr(task.operator(), task.y.ravel(), damp, task.tolerance, task.tolerance, 0, task.iterations)
    return x, iterations, stop in (0, 1, 2, 4, 5)


def _cg(task: Task, damp: float) -> tuple[Array, int, bool]:
    """On the normal equations, whose condition is the square: the least memory, and the least accurate."""
    shape = task.model.x_shape
    normal = linear_operator(lambda x: task.adjoint(task.forward(x)) + damp**2 * x, lambda x: x, shape, shape, task.model.weight.dtype)
    x, stop = krylov.cg(normal, task.adjoint(task.y).ravel(), rtol=task.tolerance, maxiter=task.iterations, callback=lambda _: task.step())
    return x, task.done, stop == 0


_KRYLOV = {"lsmr": _lsmr, "lsqr": _lsqr, "cg": _cg}
KRYLOV = tuple(_KRYLOV)


_STEPS = {"discrepancy": 400, "gcv": 60}


def bidiagonal(task: Task, rule: str) -> Coefficients:
    """What A and y look like in some steps of Golub and Kahan: the few numbers that a rule chooses a weight from. Keeps three vectors.

    60 steps, or for the discrepancy as many as it takes to explain y up to its noise.

    Golub, Kahan, "Calculating the singular values and pseudo-inverse of a matrix", 1965; hybrid methods: Hansen 2010, section 6.7.
    """
    u = task.y / (size := norm(task.y) or 1.0)
    v, below, lower = np.zeros(task.model.x_shape), 0.0, []
    rest, cosine = size, -1.0  # what the steps so far leave of y, and the rotation that says so: phi-bar and c of LSQR
    for _ in range(min(_STEPS[rule], task.model.unknowns * task.model.spec.groups)):
        v = task.adjoint(u) - below * v
        task.step()
        if (diagonal := norm(v)) <= 1e-14 * size:
            break
        v /= diagonal
        u = task.forward(v) - diagonal * u
        below = norm(u)
        lower.append((diagonal, below))
        length = float(np.hypot(cosine * diagonal, below))
        cosine, rest = -cosine * diagonal / length, rest * below / length
        if below <= 1e-14 * size or rest <= 0.9 * task.goal():
            break
        u /= below
    matrix = np.zeros((len(lower) + 1, len(lower)))
    for at, (diagonal, below) in enumerate(lower):
        matrix[at : at + 2, at] = diagonal, below
    left, sigma, _ = np.linalg.svd(matrix, full_matrices=True)
    power = (size * left[0]) ** 2
    return Coefficients(sigma, power[: len(sigma)], np.ones(len(sigma)), float(power[len(sigma) :].sum()), len(sigma) + 1)


def richardson_lucy(task: Task) -> Found:
    """x <- x A*(y / A x) / A* 1, from a constant; stops early where the residual sinks to the noise.

    Richardson, "Bayesian-based iterative method of image restoration", 1972; Lucy, "An iterative technique for the rectification of
    observed distributions", 1974. A* 1 is what each x gives to y in all, which at the border is less than in the middle.
    """
    y, tiny = task.y, np.finfo(task.y.dtype).tiny
    given = task.adjoint(np.ones_like(y))
    x = np.full(task.model.x_shape, y.mean() * y.size / max(float(given.sum()), tiny), y.dtype)
    share = np.divide(1, given, out=np.zeros_like(given), where=given > 0)
    for _ in range(task.iterations):
        seen = task.forward(x)
        if task.noise and norm(seen - y) <= task.goal():
            return Found(x, task.done, True)
        ratio = np.divide(y, seen, out=np.zeros_like(y), where=seen > tiny)
        before, x = x, x * (task.adjoint(ratio) * share)
        task.step()
        if norm(x - before) <= task.tolerance * norm(x):
            return Found(x, task.done, True)
    return Found(x, task.done, bool(task.noise) and task.misfit(x) <= task.goal())


def sparse(task: Task, weight: float) -> Found:
    """min |A x - y|^2 + weight |x|_1 by PyLops' FISTA (Beck and Teboulle, 2009)."""
    import pylops
    from pylops.optimization.cls_sparsity import FISTA

    op = pylops.LinearOperator(task.operator(), dims=(prod(task.model.x_shape),), dimsd=(task.y.size,))
    solver = FISTA(op)
    x = solver.setup(task.y.ravel(), niter=task.iterations, eps=weight, alpha=1 / largest(task) ** 2, tol=task.tolerance)
    z, converged = x.copy(), False
    while task.done < task.iterations and not converged:
        x, z, change = solver.step(x, z)
        converged = change <= task.tolerance * norm(x)
    return Found(x.reshape(task.model.x_shape), task.done, converged, weight)


def total_variation(task: Task, weight: float | None) -> Found:
    """min |A x - y|^2 + weight TV(x), TV the sum of the lengths of x's gradient; without a weight, the one that leaves the noise as residual.

    The primal-dual method of Condat, "A primal-dual splitting method for convex optimization", 2013, algorithm 3.1: per step one product
    with A and one with its adjoint, where split Bregman solves a linear system.
    """
    axes = [axis for axis in range(2, task.y.ndim) if task.model.x_shape[axis] > 1]
    lipschitz = largest(task) ** 2
    dual_step = lipschitz / (8 * max(len(axes), 1))  # |D|^2 <= 4 an axis: half of what the steps may be goes to either term
    step = 1 / (lipschitz / 2 + dual_step * 4 * len(axes))
    free, half = weight is None, (task.noise or 0.0) if weight is None else weight / 2  # below, f is |A x - y|^2 / 2
    x = task.adjoint(task.y) / lipschitz
    dual = np.zeros((len(axes), *x.shape), x.dtype)
    while task.done < task.iterations:
        left = task.forward(x) - task.y
        ahead = x - step * (task.adjoint(left) + divergence(dual, axes))
        change, size = (norm(a) for a in (ahead - x, ahead))
        dual += dual_step * gradient(2 * ahead - x, axes)
        length = np.sqrt((dual**2).sum(0))
        dual *= np.divide(half, length, out=np.ones_like(length), where=length > half)
        x = ahead
        task.step()
        settled = True
        if free and task.done % 5 == 0:
            factor = min(max(task.goal() / max(norm(left), 1e-300), 0.7), 1.4)
            half, settled = half * factor, abs(factor - 1) < 0.02
        if change <= task.tolerance * size and settled and (not free or task.done % 5 == 0):
            return Found(x, task.done, True, 2 * half)
    return Found(x, task.done, False, 2 * half)


def gradient(x: Array, axes: list[int]) -> Array:
    """D x: differences to the next value along each axis, 0 at the end."""
    found = np.zeros((len(axes), *x.shape), x.dtype)
    for part, axis in zip(found, axes, strict=True):
        a, b = np.moveaxis(x, axis, 0), np.moveaxis(part, axis, 0)
        np.subtract(a[1:], a[:-1], out=b[:-1])
    return found


def divergence(dual: Array, axes: list[int]) -> Array:
    """The adjoint of `gradient`."""
    found = np.zeros(dual.shape[1:], dual.dtype)
    for part, axis in zip(dual, axes, strict=True):
        a, b = np.moveaxis(found, axis, 0), np.moveaxis(part, axis, 0)
        a[:-1] -= b[:-1]
        a[1:] += b[:-1]
    return found


def largest(task: Task) -> float:
    """A bound of the largest singular value, by Schur's test: the largest sums of |A| along rows and columns."""
    model = task.model
    bound = Task(Model(model.spec, np.abs(model.weight), model.transposed, model.boundary, model.pads), task.y, 0, 0, threads=task.threads)
    ones = (np.ones(shape, model.weight.dtype) for shape in (model.x_shape, model.y_shape))
    rows, columns = (float(run(one).max()) for run, one in zip((bound.forward, bound.adjoint), ones, strict=True))
    return float(np.sqrt(rows * columns))


def noise_level(y: Array) -> float:
    """The standard deviation of white noise in y, from its second differences along every spatial axis, which blurred pictures hardly have.

    Immerkaer, "Fast noise variance estimation", 1996, with the median in place of the mean.
    """
    gain = 1.0
    for axis in range(2, y.ndim):
        if y.shape[axis] > 2:
            y, gain = np.diff(y, 2, axis), gain * 6
    return float(np.median(np.abs(y)) / 0.6745 / np.sqrt(gain))
