# SPDX-License-Identifier: Apache-2.0
"""The layer and its two gradients as functions of arrays, and `stamp`, the textbook case."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy import ndarray  # looked up in every call

from . import _core, _problem
from ._foreign import aligned
from ._problem import SLOPE, Problem, activation_code
from ._runtime import (
    Array,
    arrive,
    as_array,
    bias_array,
    check_memory,
    compute_dtype,
    fresh,
    into,
    kernel_for,
    readable,
    result,
    same_dtype,
    stored,
    thread_count,
    write,
)
from ._spec import ArgumentError, Ints, Padding, Spec, integer, is_single

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Prepared(NamedTuple):
    """A problem with the core's plan for it, and the shape of its result."""

    problem: Problem
    stencil: _core.Stencil
    shape: tuple[int, ...]


def core_steps(spec: Spec) -> tuple[list[int], list[int]]:
    """Strides and dilations as the core takes them: those of one input and of one tap, which mean nothing, are small."""
    stride = [axis.stride if axis.size > 1 else min(axis.stride, axis.extent) for axis in spec.axes]
    dilation = [axis.dilation if axis.kernel > 1 else 1 for axis in spec.axes]
    return stride, dilation


def core_problem(problem: Problem) -> _core.Problem:
    """The core's own form of a problem."""
    spec = problem.spec
    stride, dilation = core_steps(spec)
    return _core.Problem(spec.batch, spec.in_channels, spec.out_channels, spec.groups, spec.input_size, spec.kernel_size, stride, dilation,
                         spec.crop, problem.layout == "channels_last", problem.batched)  # fmt: skip


def prepare(problem: Problem, forward: bool, dtype: str, kernel: str, threads: int, *, pack_always: bool) -> Prepared:
    """Plan a forward layer or its input gradient on arrays of `dtype`, once its result is known to fit into memory.

    `pack_always` says that the weight is packed for every call: then what that costs has a part in the choice of a kernel.
    """
    shape = problem.output_shape if forward else problem.input_shape
    check_memory(shape, _BYTES[dtype], problem.spec)
    core = core_problem(problem)
    _check_algorithm(core, problem, forward, dtype, kernel)
    return Prepared(problem, _core.Stencil(core, forward, dtype, kernel, threads, pack_always), shape)


def _check_algorithm(core: _core.Problem, problem: Problem, forward: bool, dtype: str, kernel: str) -> None:
    if reason := _core.refusal(core, forward, dtype, kernel):
        raise ArgumentError("algorithm", kernel, f"cannot compute this problem: {reason}", problem.spec)


_PLAIN = {int, str, type(None)}


def key(name: str, value: Any) -> Any:
    """A word of a call as part of a cache's key: plain ints and tuples, so that 1.0 is never taken for a cached 1."""
    if value is None or type(value) is int or isinstance(value, str):
        return value
    if not is_single(value):
        return tuple(key(name, v) for v in value)
    return integer(name, value)


def words_key(**words: Any) -> tuple[tuple[str, Any], ...]:
    """All words of a call as a cache's key."""
    if _PLAIN.issuperset(map(type, words.values())):
        return tuple(words.items())
    return tuple((name, key(name, value)) for name, value in words.items())


@lru_cache(maxsize=256)
def _forward(
    x: tuple[int, ...], w: tuple[int, ...], dtype: np.dtype[Any], kernel: str, threads: int, words: tuple[tuple[str, Any], ...]
) -> Prepared:
    return prepare(_problem.forward(x, w, **dict(words)), True, dtype.name, kernel, threads, pack_always=True)


@lru_cache(maxsize=256)
def _backward(grad: tuple[int, ...], w: tuple[int, ...], input_size: Any, dtype: np.dtype[Any], kernel: str, threads: int,
              words: tuple[tuple[str, Any], ...]) -> Prepared:  # fmt: skip
    return prepare(_problem.grad_input(grad, w, input_size, **dict(words)), False, dtype.name, kernel, threads, pack_always=True)


@lru_cache(maxsize=256)
def _by_weight(x: tuple[int, ...], grad: tuple[int, ...], kernel_size: Any, dtype: np.dtype[Any], kernel: str,
               words: tuple[tuple[str, Any], ...]) -> tuple[Problem, _core.Problem]:  # fmt: skip
    problem = _problem.grad_weight(x, grad, kernel_size, **dict(words))
    check_memory(problem.spec.weight_shape, dtype.itemsize, problem.spec)
    core = core_problem(problem)
    _check_algorithm(core, problem, True, dtype.name, kernel)
    return problem, core


@lru_cache(maxsize=256)
def _by_all(
    x: tuple[int, ...], w: tuple[int, ...], grad: tuple[int, ...], words: tuple[tuple[str, Any], ...]
) -> tuple[Problem, _core.Problem]:
    problem = _problem.gradients(x, w, grad, **dict(words))
    return problem, core_problem(problem)


def conv_transpose(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "channels_first",
    activation: str | None = None,
    negative_slope: float = SLOPE,
    out: Array | None = None,
    threads: int | None = None,
    algorithm: str = "auto",
) -> Array:
    """Transposed convolution: every input element stamps a scaled kernel on the output, and stamps that overlap add up.

    Shapes, with one to three spatial axes (their number is that of `w`):
        x     (N, Cin, *I), or (N, *I, Cin) with layout="channels_last"; N may be absent
        w     (Cin, Cout / groups, *kernel_size), as in PyTorch; the kernel is not flipped
        bias  (Cout,) or None
        ->    (N, Cout, *O) in the layout of x, with O = (I - 1) * stride + dilation * (kernel_size - 1) + 1 - lo - hi

    `padding` crops the full output: an int, one int per axis, or one (lo, hi) pair per axis, where a negative number
    appends zeros instead; "valid" crops nothing; "same" gives O = I * stride, as TensorFlow, Keras and JAX do.
    `output_padding` (0 <= output_padding < max(stride, dilation)) lowers hi; `output_size` asks for O itself, at most
    stride - 1 above the smallest. `stride`, `dilation` and `output_padding` are an int or one per axis.

    `activation` is applied to the output after bias, while it is still in the cache: None, "relu", "leaky_relu", "tanh"
    or "sigmoid"; a negative value x becomes negative_slope * x in leaky_relu, which alone takes `negative_slope`. NaN stays
    NaN. tanh and sigmoid lie within 3 units in the last place of the true function of the sum. The gradients are those of
    the layer without bias and activation.

    float32 and float64 are computed as such; float16 and bfloat16 are accumulated in float32, and rounded once (bfloat16 may be
    multiplied by the processor's dot products or matrix unit, to which numbers below 2**-126 are zero). All arrays share one
    dtype; lists of floats become float64, and integers are refused. `out` takes the result: right shape and dtype,
    writeable, overlapping no input. `threads` never changes a bit of the result. `algorithm` is one of `tconv.kernels()`, or
    a method alone: "direct" multiplies every tap, "winograd", "rowwise" and "strassen" fewer or refuse, "auto" takes what is estimated fastest.

    With "direct", a NaN or an infinity in x reaches the outputs that its stamp covers and no others; one in w may reach
    outputs at the border besides. Winograd's tiles, which "auto" may take for layers of 16 channels and more, and for
    sums of 64 terms and more, mix neighbours: a NaN may reach outputs a few pixels further, and an output that no input reaches is zero up to rounding.
    Strassen's quarters, which it may take for sums of 256 terms and more, mix two neighbours of a row, and each channel with
    one that is half of all channels further on: there too a zero is one up to rounding, and a NaN in x or w may reach both.

    Arrays of other libraries that lie in the CPU's memory and have `__dlpack__` (PyTorch, JAX, TensorFlow, MLX, ...) are read where
    they lie, all of a call from one library, and the result is an array of that library, over the memory we wrote where it
    allows that (MLX copies). There is no gradient: a tensor that requires grad is refused, `tconv.torch` has the layer for it.

    Raises `ArgumentError` (a ValueError), which names the argument, its value and the rule.

    >>> import numpy as np, tconv
    >>> x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((2, 3, 4, 4), np.float32)
    >>> tconv.conv_transpose(x, w, stride=2, padding=1).shape
    (1, 3, 8, 8)
    >>> tconv.conv_transpose(-x, w, stride=2, padding=1, activation="leaky_relu", negative_slope=0.5)[0, 0, 0, :3]
    array([-1., -2., -2.], dtype=float32)

    The arithmetic is that of Dumoulin and Visin, arXiv:1603.07285, section 4.
    """
    home = None
    if type(x) is not ndarray or type(w) is not ndarray or (bias is not None and type(bias) is not ndarray):
        (x, w, bias), home = arrive(out, x=x, w=w, bias=bias)
    dtype = compute_dtype("x", x)
    same_dtype(("x", x), ("w", w))
    words = words_key(stride=stride, padding=padding, output_padding=output_padding, output_size=output_size, dilation=dilation,
                      groups=groups, layout=layout)  # fmt: skip
    kernel, count = kernel_for(algorithm), thread_count(threads)
    prepared = _forward(x.shape, w.shape, x.dtype, kernel, count, words)
    code, slope = 0, 0.0
    if activation is not None or negative_slope is not SLOPE:
        code, slope = activation_code(activation, negative_slope, dtype.itemsize == 8)
    add = None
    if bias is not None:
        bias = bias_array(bias, prepared.problem.spec.out_channels, w, prepared.problem.spec)
        add = np.ascontiguousarray(readable(bias, dtype))
    if home is not None:
        out = aligned(prepared.shape, x.dtype)
    elif out is None and x.dtype is dtype:  # the usual call: microseconds count
        y = fresh(prepared.shape, dtype)
        prepared.stencil.apply(readable(x, dtype), readable(w, dtype), add, y, code, slope)
        return y
    y = result(out, prepared.shape, x.dtype, [a for a in (x, w, bias) if a is not None], prepared.problem.spec)
    y = write(y, partial(prepared.stencil.apply, stored(x), stored(w), add, activation=code, slope=slope))
    return y if home is None else home(y)


def conv_transpose_grad_input(
    grad: npt.ArrayLike,
    w: npt.ArrayLike,
    input_size: Ints | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "channels_first",
    out: Array | None = None,
    threads: int | None = None,
    algorithm: str = "auto",
) -> Array:
    """Gradient of `conv_transpose` with respect to x: the strided convolution of `grad` with the same weight.

    Shapes:
        grad  (N, Cout, *O), or (N, *O, Cout) with layout="channels_last"; N may be absent
        w     (Cin, Cout / groups, *kernel_size)
        ->    (N, Cin, *input_size) in the layout of grad

    `input_size` (an int or one per axis) is needed only where several sizes give O; the smallest is taken otherwise.
    It is the exact adjoint: sum(grad * conv_transpose(x, w)) == sum(conv_transpose_grad_input(grad, w) * x). All other
    arguments, and the errors, are those of `conv_transpose`.

    >>> import numpy as np, tconv
    >>> grad, w = np.ones((1, 3, 8, 8), np.float32), np.ones((2, 3, 4, 4), np.float32)
    >>> tconv.conv_transpose_grad_input(grad, w, stride=2, padding=1).shape
    (1, 2, 4, 4)
    """
    home = None
    if type(grad) is not ndarray or type(w) is not ndarray:
        (grad, w), home = arrive(out, grad=grad, w=w)
    compute_dtype("grad", grad)
    same_dtype(("grad", grad), ("w", w))
    words = words_key(stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
                      layout=layout)  # fmt: skip
    kernel, count = kernel_for(algorithm), thread_count(threads)
    prepared = _backward(grad.shape, w.shape, key("input_size", input_size), grad.dtype, kernel, count, words)
    out = out if home is None else aligned(prepared.shape, grad.dtype)
    x = result(out, prepared.shape, grad.dtype, [grad, w], prepared.problem.spec)
    x = write(x, partial(prepared.stencil.apply, stored(grad), stored(w), None))
    return x if home is None else home(x)


def conv_transpose_grad_weight(
    x: npt.ArrayLike,
    grad: npt.ArrayLike,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "channels_first",
    out: Array | None = None,
    threads: int | None = None,
    algorithm: str = "auto",
) -> Array:
    """Gradient of `conv_transpose` with respect to w: the correlation of x with `grad`, one sum a tap.

    Shapes:
        x     (N, Cin, *I), or (N, *I, Cin) with layout="channels_last"; N may be absent
        grad  (N, Cout, *O) in the same layout
        ->    (Cin, Cout / groups, *kernel_size)

    `kernel_size` holds one int per axis; unbatched arrays need it so, since (C, H, W) and (N, C, L) look alike: a single
    int means arrays with a batch axis. All other arguments, and the errors, are those of `conv_transpose`. The
    gradient with respect to bias is the sum of `grad` over all axes but the channels; `conv_transpose_grads` has it. (Where
    x or `grad` holds a NaN or an infinity, taps that meet it only beyond the border may become NaN too, and with Winograd's
    tiles any tap of its channel.)

    >>> import numpy as np, tconv
    >>> x, grad = np.ones((1, 2, 4, 4), np.float32), np.ones((1, 3, 8, 8), np.float32)
    >>> tconv.conv_transpose_grad_weight(x, grad, (4, 4), stride=2, padding=1).shape
    (2, 3, 4, 4)
    """
    home = None
    if type(x) is not ndarray or type(grad) is not ndarray:
        (x, grad), home = arrive(out, x=x, grad=grad)
    dtype = compute_dtype("x", x)
    same_dtype(("x", x), ("grad", grad))
    words = words_key(stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
                      layout=layout)  # fmt: skip
    kernel, count = kernel_for(algorithm), thread_count(threads)
    problem, core = _by_weight(x.shape, grad.shape, key("kernel_size", kernel_size), dtype, kernel, words)
    out = out if home is None else aligned(problem.spec.weight_shape, x.dtype)
    w = result(out, problem.spec.weight_shape, x.dtype, [x, grad], problem.spec)
    data, dy = readable(x, dtype, count), readable(grad, dtype, count)
    w = into(w, dtype, lambda to: _core.grad_weight(core, kernel, data, dy, to, count), count)
    return w if home is None else home(w)


class Gradients(NamedTuple):
    """The gradients of one layer; None where one was not asked for."""

    input: Array | None
    weight: Array | None
    bias: Array | None


GRADS = ("input", "weight", "bias")


def conv_transpose_grads(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    grad: npt.ArrayLike,
    *,
    grads: Iterable[str] = GRADS,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "channels_first",
    threads: int | None = None,
    algorithm: str = "auto",
) -> Gradients:
    """The gradients of one layer in one call, as a training step needs them: by x, by w and by bias.

    Shapes:
        x     (N, Cin, *I), or (N, *I, Cin) with layout="channels_last"; N may be absent
        w     (Cin, Cout / groups, *kernel_size)
        grad  (N, Cout, *O) in the layout of x
        ->    input like x, weight like w, bias (Cout,)

    `grads` names those that are computed, of "input", "weight" and "bias"; the others are None. The values are those of
    `conv_transpose_grad_input` and `conv_transpose_grad_weight` to the bit, and for bias the sum of `grad` over all axes but
    the channels; the problem is worked out once for all. The other arguments, and the errors, are
    those of `conv_transpose`.

    >>> import numpy as np, tconv
    >>> x, w, grad = np.ones((1, 2, 4, 4)), np.ones((2, 3, 4, 4)), np.ones((1, 3, 8, 8))
    >>> found = tconv.conv_transpose_grads(x, w, grad, stride=2, padding=1)
    >>> found.input.shape, found.weight.shape, found.bias
    ((1, 2, 4, 4), (2, 3, 4, 4), array([64., 64., 64.]))
    >>> tconv.conv_transpose_grads(x, w, grad, grads=("weight",), stride=2, padding=1).input is None
    True
    """
    home = None
    if type(x) is not ndarray or type(w) is not ndarray or type(grad) is not ndarray:
        (x, w, grad), home = arrive(None, x=x, w=w, grad=grad)
    new = fresh if home is None else aligned
    dtype = compute_dtype("x", x)
    same_dtype(("x", x), ("w", w), ("grad", grad))
    asked = _asked(grads)
    words = words_key(stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
                      layout=layout)  # fmt: skip
    kernel, count = kernel_for(algorithm), thread_count(threads)
    problem, core = _by_all(x.shape, w.shape, grad.shape, words)
    dy = readable(grad, dtype, count) if asked != {"input"} else grad
    by_x = by_w = by_bias = None
    if "input" in asked:
        size = problem.spec.input_size
        prepared = _backward(grad.shape, w.shape, size, grad.dtype, kernel, count, words)
        by_x = write(new(x.shape, x.dtype), partial(prepared.stencil.apply, stored(grad), stored(w), None))
    if "weight" in asked:
        _check_algorithm(core, problem, True, dtype.name, kernel)
        check_memory(w.shape, dtype.itemsize, problem.spec)
        data = readable(x, dtype, count)
        by_w = into(new(w.shape, x.dtype), dtype, lambda to: _core.grad_weight(core, kernel, data, dy, to, count), count)
    if "bias" in asked:
        by_bias = into(new((problem.spec.out_channels,), x.dtype), dtype, lambda to: _core.grad_bias(core, dy, to, count), count)
    found = (by_x, by_w, by_bias)
    return Gradients(*(found if home is None else (None if by is None else home(by) for by in found)))


def _asked(grads: Iterable[str]) -> set[str]:
    """The names of gradients, each known."""
    try:
        asked = set(grads) if not isinstance(grads, str) else {grads}
    except TypeError:
        raise ArgumentError("grads", grads, f"must hold names of {GRADS}") from None
    if not asked <= set(GRADS):
        raise ArgumentError("grads", grads, f"must hold names of {GRADS}")
    return asked


def stamp(x: npt.ArrayLike, kernel: npt.ArrayLike, *, stride: Ints = 1, padding: Padding = 0, output_padding: Ints = 0,
          output_size: Ints | None = None, dilation: Ints = 1) -> Array:  # fmt: skip
    """Transposed convolution of plain arrays without channels: the textbook case.

    `x` and `kernel` are numeric arrays of one rank, 1 to 3; two float32 arrays stay float32, all else (integers too) is
    computed in float64. The other arguments, and the errors, are those of `conv_transpose`.

    >>> stamp([[0, 1], [2, 3]], [[4, 1], [2, 3]])
    array([[ 0.,  4.,  1.],
           [ 8., 16.,  6.],
           [ 4., 12.,  9.]])
    """
    arrays = {name: as_array(name, value) for name, value in (("x", x), ("kernel", kernel))}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise ArgumentError(name, array.dtype.name, "must hold real numbers")
        if not 1 <= array.ndim <= 3 or array.ndim != arrays["x"].ndim:
            raise ArgumentError(name, array.shape, "must have 1 to 3 axes, as many as the other array")
    single = all(array.dtype == np.float32 for array in arrays.values())
    data, taps = (array.astype(np.float32 if single else np.float64, copy=False) for array in arrays.values())
    y = conv_transpose(data[None, None], taps[None, None], stride=stride, padding=padding, output_padding=output_padding,
                       output_size=output_size, dilation=dilation)  # fmt: skip
    return y.reshape(y.shape[2:])
