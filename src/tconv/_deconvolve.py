# SPDX-License-Identifier: Apache-2.0
"""Undo a convolution, or a transposed one: the values that were there, with the evidence for them. SciPy is imported when it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _problem
from ._method import Deconvolution, Wish
from ._model import Model, convolution
from ._runtime import Array, as_array, check_memory, compute_dtype, same_dtype
from ._spec import ArgumentError, Ints, Padding


def deconvolve(y: npt.ArrayLike, kernel: npt.ArrayLike, *, stride: Ints = 1, padding: Padding = 0, output_padding: Ints = 0,
               output_size: Ints | None = None, dilation: Ints = 1, groups: int = 1, layout: str = "channels_first",
               boundary: str = "zero", method: str = "auto", regularization: float | str | None = None, penalty: str = "identity",
               noise: float | None = None, iterations: int | None = None, tolerance: float | None = None, threads: int | None = None,
               progress: Callable[[int], None] | None = None) -> Deconvolution:  # fmt: skip
    """Undo a convolution: x from y = conv(x), where conv is the adjoint of `conv_transpose`, as in PyTorch's ConvNd.

    Shapes; x has the shape of conv_transpose(y, kernel, ...) with the same words, and other values:
        y       (N, Cin, *I), or (N, *I, Cin) with layout="channels_last"; N may be absent
        kernel  (Cin, Cout / groups, *kernel_size): PyTorch's conv weight as it is
        x       (N, Cout, *O)
    A kernel of one or two axes has no channels: y and x are then plain arrays with as many axes.

    `boundary` says what lies beyond x where `padding` reaches over its border: "zero", "reflect" (the border's value not repeated),
    "replicate" or "circular"; with padding=0 nothing does, and x is larger than y.

    `method`, all but the last three of which minimise |A x - y|^2 + regularization * |L x|^2:
        "dense"            LAPACK; for small problems, any geometry
        "fourier"          division in the spectrum (Tikhonov, Wiener): exact where the boundary is circular; elsewhere, for stride 1,
                           y is continued smoothly, and only the middle of x is right
        "lsmr" "lsqr" "cg" SciPy's Krylov solvers on the layer's kernels, any geometry and size
        "richardson_lucy"  for kernels and values without negative ones; `iterations` is its regularisation
        "tv" "l1"          PyLops' solvers: + regularization * (sum of |differences|, or sum of |x|)
        "auto"             fourier where circular, dense where small, lsmr elsewhere
    L is the identity or, by `penalty` and in "fourier" with one channel a group, the "laplacian".

    `regularization` is the weight, or a rule that chooses it: "discrepancy" (the residual is as large as the noise), "gcv", or
    "lcurve" in "dense" and "fourier".
    None: by discrepancy where `noise`, its standard deviation in y, is given; 0 where the condition is below 1000; gcv elsewhere. "tv" and "l1" go by the noise, estimated from y where it is not given. Where x is not unique, the answer
    without regularisation is the one of minimum norm. A `RuntimeWarning` says where an answer did not converge, or may be mostly noise.

    `tolerance` (1e-13, for float32 1e-6; 1e-4 for pictures' methods) and `iterations` end an iteration; `progress` is told of each.
    "fourier" and the last three compute in the dtype of y, all others in float64.

    Raises `ArgumentError`, which names the argument, its value and the rule. Needs SciPy: pip install "tconv[deconvolve]".

    >>> import numpy as np, tconv
    >>> x, kernel = np.arange(6.0).reshape(2, 3), np.array([[4.0, 1], [2, 3]])
    >>> y = tconv.conv_transpose_grad_input(np.pad(x, 1)[None, None], kernel[None, None])[0, 0]
    >>> found = tconv.deconvolve(y, kernel, padding=1)
    >>> bool(np.allclose(found.x, x)), found.posedness.unique
    (True, True)

    Hansen, Nagy, O'Leary, "Deblurring Images: Matrices, Spectra, and Filtering", SIAM 2006.
    """
    y, kernel = as_array("y", y), as_array("kernel", kernel)
    compute_dtype("y", y)
    same_dtype(("y", y), ("kernel", kernel))
    plain = kernel.ndim < 3 and y.ndim == kernel.ndim and layout == "channels_first"
    data, w = (y[None, None], kernel[None, None]) if plain else (y, kernel)
    problem = _called("w", "kernel", lambda: _called("x", "y", lambda: _problem.forward(
        data.shape, w.shape, stride=stride, padding=padding, output_padding=output_padding, output_size=output_size, dilation=dilation,
        groups=groups, layout=layout)))  # fmt: skip
    wish = Wish(method, regularization, penalty, noise, iterations, tolerance, threads, progress)
    model = convolution(problem.spec, _computed("kernel", w, wish), boundary)
    return _finish(wish, model, y, data, problem, plain)


def conv_transpose_inverse(y: npt.ArrayLike, w: npt.ArrayLike, input_size: Ints | None = None, *, stride: Ints = 1, padding: Padding = 0,
                           output_padding: Ints = 0, dilation: Ints = 1, groups: int = 1, layout: str = "channels_first",
                           method: str = "auto", regularization: float | str | None = None, noise: float | None = None,
                           iterations: int | None = None, tolerance: float | None = None, threads: int | None = None,
                           progress: Callable[[int], None] | None = None) -> Deconvolution:  # fmt: skip
    """Undo a transposed convolution: x from y = conv_transpose(x, w), which mostly has one answer, as y holds more values than x.

    Shapes:
        y  (N, Cout, *O), or (N, *O, Cout) with layout="channels_last"; N may be absent; without bias
        w  (Cin, Cout / groups, *kernel_size)
        x  (N, Cin, *input_size), as `conv_transpose_grad_input` has it

    All other arguments, and the errors, are those of `deconvolve`; "fourier" is not among the methods.

    >>> import numpy as np, tconv
    >>> y = tconv.stamp([[0, 1], [2, 3]], [[4, 1], [2, 3]])
    >>> found = tconv.conv_transpose_inverse(y[None], np.array([[[[4.0, 1], [2, 3]]]]))
    >>> found.x.round(12) + 0.0
    array([[[0., 1.],
            [2., 3.]]])
    """
    y, w = as_array("y", y), as_array("w", w)
    compute_dtype("y", y)
    same_dtype(("y", y), ("w", w))
    problem = _called("grad", "y", lambda: _problem.grad_input(
        y.shape, w.shape, input_size, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
        layout=layout))  # fmt: skip
    if method == "fourier":
        raise ArgumentError("method", method, "undoes convolutions only; a transposed one has no circular form here")
    wish = Wish(method, regularization, "identity", noise, iterations, tolerance, threads, progress)
    return _finish(wish, Model(problem.spec, _computed("w", w, wish), transposed=True), y, y, problem, False)


def _called(theirs: str, ours: str, run: Callable[[], Any]) -> Any:
    """Errors about an argument by the name that it has here."""
    try:
        return run()
    except ArgumentError as error:
        if error.argument != theirs:
            raise
        raise ArgumentError(ours, error.value, error.rule, error.problem) from None


def _computed(name: str, array: Array, wish: Wish) -> Array:
    """A copy as the solvers compute with it, and as the evidence finds it later: finite, and float64 for linear systems."""
    dtype = compute_dtype(name, array)
    if not np.isfinite(array).all():
        raise ArgumentError(name, f"array of shape {array.shape}", "must hold finite numbers only")
    return np.array(array, np.float64 if wish.double else dtype, order="C")


def _finish(wish: Wish, model: Model, y: Array, data: Array, problem: _problem.Problem, plain: bool) -> Deconvolution:
    """Solve in canonical axes, and give back the caller's."""
    wish.check(problem.spec)
    if not y.size:
        raise ArgumentError("y", y.shape, "must hold at least one value")
    check_memory(model.x_shape, 8, problem.spec)
    values = _computed("y", data, wish).reshape(data.shape if problem.batched else (1, *data.shape))
    values = np.ascontiguousarray(np.moveaxis(values, -1, 1) if problem.layout == "channels_last" else values)
    try:
        from ._solve import solve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'deconvolution needs {error.name}; install it with: pip install "tconv[deconvolve]"', name=error.name
        ) from None
    found = solve(wish, model, values, y.dtype.itemsize)
    x = np.moveaxis(found.x, 1, -1) if problem.layout == "channels_last" else found.x
    x = x.reshape(x.shape[2:] if plain else x.shape if problem.batched else x.shape[1:])
    with np.errstate(over="ignore"):
        return replace(found, x=np.array(x, y.dtype, order="C"))
