# SPDX-License-Identifier: Apache-2.0
"""The three operators in a few lines of NumPy: what the layer computes, to be read, and to judge the native core by.

Each function loops over the kernel's taps. A tap at position t, which is one number per axis, multiplies every input i and
lands on the full output at i * stride + t * dilation; `_reached` is that slice, and the whole of the geometry. This module
never imports the native core. It is slow (one pass over the full output per tap) and accurate: float64 stays float64,
float32, float16 and bfloat16 are summed in float32 and rounded once, at the end.

The arguments are those of the functions of the same names in `tconv`, less `out`, `threads` and `algorithm`. It takes more than
they do: integers and booleans, which go to float64, arrays in any byte order, and a bias of another dtype than the weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _problem
from ._problem import Problem
from ._spec import ArgumentError, Ints, Padding, Spec, clip

__all__ = ["conv_transpose", "conv_transpose_grad_input", "conv_transpose_grad_weight"]

Array = npt.NDArray[Any]


def conv_transpose(x: npt.ArrayLike, w: npt.ArrayLike, bias: npt.ArrayLike | None = None, *, stride: Ints = 1, padding: Padding = 0,
                   output_padding: Ints = 0, output_size: Ints | None = None, dilation: Ints = 1, groups: int = 1,
                   layout: str = "channels_first", activation: str | None = None,
                   negative_slope: float = _problem.SLOPE) -> Array:  # fmt: skip
    """The layer: every input stamps the kernel onto the output, scaled by its value; overlapping stamps add up.

    x: (batch, in_channels, *size), or (batch, *size, in_channels) with layout="channels_last", or either without the batch
    w: (in_channels, out_channels / groups, *kernel_size)        bias: (out_channels,)
    result: laid out as x, with out_channels, and size (size - 1) * stride + dilation * (kernel_size - 1) + 1 - lo - hi

    `padding` is the crop (lo, hi) of the full output: an int, one int or one (lo, hi) pair per axis (negative adds zeros),
    "valid" or "same". Bias is added everywhere, to appended zeros too, and then
    `activation` is applied: None, "relu", "leaky_relu", "tanh" or "sigmoid". Raises ArgumentError for arguments that do not fit.

    >>> x = np.array([[[0.0, 1.0], [2.0, 3.0]]])
    >>> kernel = np.array([[[[4.0, 1.0], [2.0, 3.0]]]])
    >>> conv_transpose(x, kernel)[0]
    array([[ 0.,  4.,  1.],
           [ 8., 16.,  6.],
           [ 4., 12.,  9.]])
    >>> conv_transpose(np.ones((1, 4, 4)), np.ones((1, 1, 3, 3)), stride=2, padding="same").shape
    (1, 8, 8)
    """
    x, w, dtype = _arrays(x=x, w=w)
    _, slope = _problem.activation_code(activation, negative_slope, x.dtype == np.float64)
    problem = _problem.forward(x.shape, w.shape, stride=stride, padding=padding, output_padding=output_padding,
                               output_size=output_size, dilation=dilation, groups=groups, layout=layout)  # fmt: skip
    spec, weight = problem.spec, _by_group(w, 0, problem.spec.groups)
    inputs = _canonical(x, problem)
    full = np.zeros((spec.batch, spec.groups, spec.out_channels // spec.groups, *spec.full_size), x.dtype)
    for tap in np.ndindex(*spec.kernel_size):
        full[_reached(spec, tap)] += np.einsum("ngi...,gio->ngo...", inputs, weight[(..., *tap)])
    result = _cropped(full, spec)
    if bias is not None:
        result += _bias(bias, spec).astype(x.dtype)
    return _arranged(_activated(result, activation, slope), problem).astype(dtype)


def conv_transpose_grad_input(grad: npt.ArrayLike, w: npt.ArrayLike, input_size: Ints | None = None, *, stride: Ints = 1,
                              padding: Padding = 0, output_padding: Ints = 0, dilation: Ints = 1, groups: int = 1,
                              layout: str = "channels_first") -> Array:  # fmt: skip
    """The gradient by the input, which is the layer's transpose: each input gathers what it stamped, a strided convolution.

    grad: laid out as the layer's output        w: (in_channels, out_channels / groups, *kernel_size)
    result: laid out as the layer's input, of `input_size`, or of the smallest size whose output has the size of grad

    >>> conv_transpose_grad_input([[1.0, 10.0, 100.0, 1000.0]], [[[4.0, 1.0]]], stride=2)
    array([[  14., 1400.]])
    """
    grad, w, dtype = _arrays(grad=grad, w=w)
    problem = _problem.grad_input(grad.shape, w.shape, input_size, stride=stride, padding=padding, output_padding=output_padding,
                                  dilation=dilation, groups=groups, layout=layout)  # fmt: skip
    spec, weight = problem.spec, _by_group(w, 0, problem.spec.groups)
    full = _uncropped(_canonical(grad, problem), spec)
    result = np.zeros((spec.batch, spec.groups, spec.in_channels // spec.groups, *spec.input_size), w.dtype)
    for tap in np.ndindex(*spec.kernel_size):
        result += np.einsum("ngo...,gio->ngi...", full[_reached(spec, tap)], weight[(..., *tap)])
    return _arranged(result, problem).astype(dtype)


def conv_transpose_grad_weight(x: npt.ArrayLike, grad: npt.ArrayLike, kernel_size: Ints, *, stride: Ints = 1, padding: Padding = 0,
                               output_padding: Ints = 0, dilation: Ints = 1, groups: int = 1,
                               layout: str = "channels_first") -> Array:  # fmt: skip
    """The gradient by the weight: each tap sums, over images and positions, the input times the gradient it reached.

    x, grad: laid out as the layer's input and output        result: (in_channels, out_channels / groups, *kernel_size)

    >>> conv_transpose_grad_weight([[1.0, 2.0]], [[1.0, 10.0, 100.0]], 2)
    array([[[ 21., 210.]]])
    """
    x, grad, dtype = _arrays(x=x, grad=grad)
    problem = _problem.grad_weight(x.shape, grad.shape, kernel_size, stride=stride, padding=padding, output_padding=output_padding,
                                   dilation=dilation, groups=groups, layout=layout)  # fmt: skip
    spec, inputs = problem.spec, _flat(_canonical(x, problem))
    full = _uncropped(_canonical(grad, problem), spec)
    result = np.zeros(spec.weight_shape, x.dtype)
    by_group = _by_group(result, 0, spec.groups)
    for tap in np.ndindex(*spec.kernel_size):
        by_group[(..., *tap)] = np.einsum("ngip,ngop->gio", inputs, _flat(full[_reached(spec, tap)]))
    return result.astype(dtype)


def _reached(spec: Spec, tap: tuple[int, ...]) -> tuple[Any, ...]:
    """The slice of the full output that one tap reaches, one position per input: o = i * stride + t * dilation."""
    starts = (t * a.dilation for t, a in zip(tap, spec.axes, strict=True))
    return (..., *(slice(at, at + (a.size - 1) * a.stride + 1, a.stride) for at, a in zip(starts, spec.axes, strict=True)))


def _cropped(full: Array, spec: Spec) -> Array:
    """y = full[lo : F - hi]; positions outside the full output are zero."""
    result = np.zeros((*full.shape[:3], *spec.output_size), full.dtype)
    result[_kept(spec)] = full[_kept(spec, 1)]
    return result


def _uncropped(grad: Array, spec: Spec) -> Array:
    """The transpose of `_cropped`: what was cut has gradient zero, what was appended is dropped."""
    full = np.zeros((*grad.shape[:3], *spec.full_size), grad.dtype)
    full[_kept(spec, 1)] = grad[_kept(spec)]
    return full


def _kept(spec: Spec, of_full: int = 0) -> tuple[Any, ...]:
    """The part that the output and the full output share, as a slice of the one or (of_full=1) of the other."""
    parts = [(clip(range(-a.lo, a.full - a.lo), a.output), a.lo * of_full) for a in spec.axes]
    return (..., *(slice(part.start + shift, part.stop + shift) for part, shift in parts))


def _activated(y: Array, activation: str | None, slope: float) -> Array:
    """The function of that name, element by element; sigmoid by e^-|y|, which never overflows."""
    if activation == "relu":
        return np.where(y < 0, y.dtype.type(0), y)
    if activation == "leaky_relu":
        with np.errstate(invalid="ignore", over="ignore"):  # minus infinity times a slope of zero is NaN, as everywhere
            return np.where(y < 0, y * y.dtype.type(slope), y)
    if activation == "tanh":
        return np.asarray(np.tanh(y))
    if activation == "sigmoid":
        small = np.exp(-np.abs(y))
        return np.asarray(np.where(y >= 0, y.dtype.type(1), small) / (1 + small))
    return y


def _canonical(array: Array, problem: Problem) -> Array:
    """A data array as (batch, groups, channels / groups, *size)."""
    array = array if problem.batched else array[None]
    if problem.layout == "channels_last":
        array = np.moveaxis(array, -1, 1)
    return _by_group(array, 1, problem.spec.groups)


def _arranged(array: Array, problem: Problem) -> Array:
    """The inverse of `_canonical`."""
    array = array.reshape(array.shape[0], array.shape[1] * array.shape[2], *array.shape[3:])
    if problem.layout == "channels_last":
        array = np.moveaxis(array, 1, -1)
    return np.ascontiguousarray(array if problem.batched else array[0])


def _by_group(array: Array, axis: int, groups: int) -> Array:
    """The axis split in two, (groups, rest)."""
    return array.reshape(*array.shape[:axis], groups, array.shape[axis] // groups, *array.shape[axis + 1 :])


def _flat(array: Array) -> Array:
    """(batch, groups, channels, positions)."""
    return array.reshape(*array.shape[:3], int(np.prod(array.shape[3:])))


def _arrays(**given: npt.ArrayLike) -> tuple[Array, Array, np.dtype[Any]]:
    """Two arrays in the dtype they are summed in, and the dtype of the result."""
    (first, a), (second, b) = ((name, _real(name, value)) for name, value in given.items())
    if a.dtype != b.dtype:
        raise ArgumentError(second, b.dtype.name, f"must have the dtype of {first}, {a.dtype.name}")
    dtype = a.dtype if a.dtype.kind not in "iub" else np.dtype(np.float64)
    summed = dtype if dtype == np.float64 else np.dtype(np.float32)
    return a.astype(summed), b.astype(summed), dtype


def _real(name: str, value: npt.ArrayLike) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:
        raise ArgumentError(name, type(value).__name__, f"must be an array ({error})") from None
    if array.dtype.kind not in "iub" and array.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
        raise ArgumentError(name, array.dtype.name, "must be float64, float32, float16, bfloat16 or integer")
    return array


def _bias(value: npt.ArrayLike, spec: Spec) -> Array:
    """One value per output channel, shaped (groups, out_channels / groups, 1...) to add to the output."""
    bias = _real("bias", value)
    _problem.check_bias(bias.shape, spec.out_channels, spec)
    return bias.reshape(spec.groups, -1, *[1] * spec.rank)
