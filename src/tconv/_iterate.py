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
from ._model import Model, extend, fold
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

        self.forward, self.adjoint = (op, convolve) if model.transposed else (convolve, spread)
        if model.transposed:
            self.adjoint = lambda y: op.T(y, input_size=spec.input_size)

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
        return float(np.linalg.norm((self.forward(x) - self.y).astype(np.float64)))

    def goal(self) -> float:
        """|A x - y| when what is left is noise."""
        return (self.noise or 0.0) * float(np.sqrt(self.y.size))


def least_squares(task: Task, weight: float | str, method: str) -> Found:
    """min |A x - y|^2 + weight |x|^2, from x = 0, so that with weight 0 the answer is the one of minimum norm."""
    if isinstance(weight, str):
        weight = choose(bidiagonal(task), weight, task.noise)
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


def bidiagonal(task: Task, steps: int = 60) -> Coefficients:
    """What A and y look like in `steps` steps of Golub and Kahan: the few numbers that a rule chooses a weight from. Keeps three vectors.

    Golub, Kahan, "Calculating the singular values and pseudo-inverse of a matrix", 1965; hybrid methods: Hansen 2010, section 6.7.
    """
    u = task.y / (size := float(np.linalg.norm(task.y)) or 1.0)
    v, below, lower = np.zeros(task.model.x_shape), 0.0, []
    for _ in range(min(steps, task.model.unknowns * task.model.spec.groups)):
        v = task.adjoint(u) - below * v
        task.step()
        if (diagonal := float(np.linalg.norm(v))) <= 1e-14 * size:
            break
        v /= diagonal
        u = task.forward(v) - diagonal * u
        below = float(np.linalg.norm(u))
        lower.append((diagonal, below))
        if below <= 1e-14 * size:
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
        if task.noise and float(np.linalg.norm(seen - y)) <= task.goal():
            return Found(x, task.done, True)
        ratio = np.divide(y, seen, out=np.zeros_like(y), where=seen > tiny)
        before, x = x, x * (task.adjoint(ratio) * share)
        task.step()
        if float(np.linalg.norm(x - before)) <= task.tolerance * float(np.linalg.norm(x)):
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
        converged = change <= task.tolerance * float(np.linalg.norm(x))
    return Found(x.reshape(task.model.x_shape), task.done, converged, weight)


def total_variation(task: Task, weight: float | None) -> Found:
    """min |A x - y|^2 + weight TV(x) by PyLops' split Bregman; without a weight, the one that leaves the noise as residual.

    TV is the sum of absolute differences between neighbours. PyLops minimises mu / 2 |A x - y|^2 + eps^2 |D x|_1 in alternation, where
    eps is also the threshold of differences (Goldstein and Osher, 2009): eps sets the pace, and mu = 2 eps^2 / weight.
    """
    import pylops
    from pylops.optimization.cls_sparsity import SplitBregman

    shape, dtype = task.model.x_shape, task.model.weight.dtype
    op = pylops.LinearOperator(task.operator(), dims=shape, dimsd=task.model.y_shape)
    differences = [pylops.FirstDerivative(shape, axis=axis, kind="forward", dtype=dtype) for axis in range(2, len(shape)) if shape[axis] > 1]
    free, weight = weight is None, 2 * (task.noise or 0.0) if weight is None else weight
    pace = 0.04 * float(np.ptp(task.y)) / abs(float(task.model.weight.sum())) if task.model.weight.sum() else 0.04 * float(np.ptp(task.y))
    solver = SplitBregman(op)
    x = solver.setup(task.y.ravel(), differences, niter_inner=1, mu=2 * pace**2 / weight, epsRL1s=[pace] * len(differences))
    rounds, converged = 0, False
    while rounds < task.iterations and not converged:
        before, x = x, solver.step(x, iter_lim=8, atol=0, btol=0)
        rounds += 1
        if task.progress is not None:
            task.progress(rounds)
        converged = float(np.linalg.norm(x - before)) <= task.tolerance * float(np.linalg.norm(x))
        if free:
            factor = min(max(task.goal() / max(task.misfit(x.reshape(shape)), 1e-300), 0.5), 2.0)
            weight *= factor
            solver.epsRs = [eps * float(np.sqrt(factor)) for eps in solver.epsRs]
            converged = converged and abs(factor - 1) < 0.05
    return Found(x.reshape(shape), rounds, converged, weight)


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
