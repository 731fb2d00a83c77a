# SPDX-License-Identifier: Apache-2.0
"""A layer as SciPy knows linear maps: a `LinearOperator` on flat vectors, and a sparse matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import LinearOperator

from ._model import Model, links
from ._runtime import Array
from ._spec import ArgumentError, Axis, Spec

_MOST_PRODUCTS = 2**27  # of a matrix: 2 GiB of values and indices


def linear_operator(forward: Callable[[Array], Array], adjoint: Callable[[Array], Array], x_shape: tuple[int, ...],
                    y_shape: tuple[int, ...], dtype: np.dtype[Any]) -> LinearOperator:  # fmt: skip
    """Two maps of arrays as one of flat vectors: x.ravel() -> y.ravel(), and back."""

    def flat(run: Callable[[Array], Array], shape: tuple[int, ...]) -> Callable[[Array], Array]:
        return lambda vector: run(np.ascontiguousarray(vector, dtype).reshape(shape)).ravel()

    return LinearOperator((prod(y_shape), prod(x_shape)), matvec=flat(forward, x_shape), rmatvec=flat(adjoint, y_shape), dtype=dtype)


def layer_matrix(spec: Spec, w: Array, channels_last: bool = False) -> sparse.csr_array:
    """The transposed convolution on flat arrays: every value of w wherever it multiplies."""
    if spec.macs > _MOST_PRODUCTS:
        raise ArgumentError("shape", spec.input_shape, f"makes {spec.macs} products, too many for a matrix: at most {_MOST_PRODUCTS}", spec)
    columns, rows, taps = _places(spec.axes)
    inputs, outputs, each = prod(spec.input_size), prod(spec.output_size), spec.out_channels // spec.groups
    cin, cout = np.indices((spec.in_channels, each, 1))[:2]
    cout = cout + cin // (spec.in_channels // spec.groups) * each
    if channels_last:
        rows, columns = rows * spec.out_channels + cout, columns * spec.in_channels + cin
    else:
        rows, columns = rows + cout * outputs, columns + cin * inputs
    values = w.reshape(spec.in_channels, each, -1)[:, :, taps]
    at = tuple(np.broadcast_to(places, values.shape).ravel() for places in (rows, columns))
    one = sparse.coo_array((values.ravel(), at), shape=(spec.out_channels * outputs, spec.in_channels * inputs))
    return sparse.kron(sparse.eye_array(spec.batch), one, format="csr").astype(w.dtype)


def _places(axes: tuple[Axis, ...]) -> tuple[Array, Array, Array]:
    """(input, output, tap) of every product, positions counted in C order over all axes."""
    found = (np.zeros(1, int),) * 3
    for axis in axes:
        sizes = (axis.size, axis.output, axis.kernel)
        found = tuple(np.add.outer(old * size, new).ravel() for old, size, new in zip(found, sizes, links(axis), strict=True))
    return found


def model_matrix(model: Model) -> sparse.csr_array:
    """A on flat arrays."""
    matrix = layer_matrix(model.spec, model.weight)
    if model.transposed:
        return matrix
    copies = [sparse.eye_array(model.spec.batch * model.spec.out_channels)]
    for source, size in zip(model.sources(), model.x_size, strict=True):
        copies.append(sparse.coo_array((np.ones(len(source)), (np.arange(len(source)), source)), shape=(len(source), size)))
    return (matrix.T @ reduce(sparse.kron, copies)).tocsr()
