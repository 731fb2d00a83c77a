# SPDX-License-Identifier: Apache-2.0
"""The three operators of `_tensorflow_ops` by way of Python, for what TensorFlow cannot call the core for by itself.

Eager tensors are read where they lie and results are handed over as they lie; in a graph `tf.numpy_function` makes the same call when the
graph runs. Gradients are `tf.custom_gradient`'s, each made of the other two operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from . import _functional, _problem
from ._operator import large_enough
from ._runtime import Array
from ._spec import Spec
from .conventions import WeightLayout

Shape: TypeAlias = tuple[Any, ...]  # ints, and None where a graph does not know one yet

WEIGHT = WeightLayout("*OI")
_ALIGNED = 64  # bytes: what TensorFlow's kernels expect of a buffer, and NumPy does not promise


class Geometry(NamedTuple):
    """The words of a call that its gradients share, in tconv's own names; the sizes come from the arrays."""

    stride: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    layout: str

    @property
    def rank(self) -> int:
        return len(self.stride)

    def spatial(self, shape: Any) -> Any:
        """The spatial sizes in the shape of data, be it a tuple or a tensor."""
        return shape[-self.rank :] if self.layout == "channels_first" else shape[-1 - self.rank : -1]

    def axes(self, axes: int) -> tuple[int, int]:
        """The axis of the channels and the first spatial one, in data of so many axes."""
        return (axes - 1 - self.rank, axes - self.rank) if self.layout == "channels_first" else (axes - 1, axes - 1 - self.rank)


def conv_transpose(geometry: Geometry, x: Any, w: Any, bias: Any = None, size: Any = ()) -> Any:
    """The layer: x (N, *I, Cin) or (N, Cin, *I), or without N; w (*k, Cout / groups, Cin); `size` asks for an output size, if not empty."""
    shape = settle(geometry, tuple(x.shape), tuple(w.shape), size if isinstance(size, tuple) else ()).shape
    return _operator(_layer, geometry, size, shape)(x, w, *([] if bias is None else [bias]))


def grad_input(geometry: Geometry, g: Any, w: Any, like: Any) -> Any:
    """The gradient by an input of the shape of `like`."""
    return _operator(_by_input, geometry, _shape(like), tuple(like.shape))(g, w)


def grad_weight(geometry: Geometry, x: Any, g: Any, like: Any) -> Any:
    """The gradient by a weight of the shape of `like`."""
    return _operator(_by_weight, geometry, _shape(like), tuple(like.shape))(x, g)


def _operator(build: Callable[..., Any], geometry: Geometry, size: Any, shape: Shape) -> Any:
    """What `build` makes, made once where the size is known: to make it takes longer than a small layer."""
    return _kept(build, geometry, size, shape) if isinstance(size, tuple) else build(geometry, size, shape)


def _layer(geometry: Geometry, size: Any, shape: Shape) -> Any:
    def call(x: Any, w: Any, *bias: Any) -> Any:
        def backward(g: Any) -> Any:
            by_bias = [tf.reduce_sum(g, _all_but_channels(geometry, len(x.shape)))] if bias else []
            return grad_input(geometry, g, w, x), grad_weight(geometry, x, g, w), *by_bias

        return _run(partial(_forward, geometry), (x, w, size, *bias), shape), backward

    return tf.custom_gradient(call)


def _by_input(geometry: Geometry, size: Any, shape: Shape) -> Any:
    def call(g: Any, w: Any) -> Any:
        def backward(gg: Any) -> Any:
            return conv_transpose(geometry, gg, w, None, geometry.spatial(_shape(g))), grad_weight(geometry, gg, g, w)

        return _run(partial(_grad_input, geometry), (g, w, size), shape), backward

    return tf.custom_gradient(call)


def _by_weight(geometry: Geometry, size: Any, shape: Shape) -> Any:
    def call(x: Any, g: Any) -> Any:
        def backward(gw: Any) -> Any:
            return grad_input(geometry, g, gw, x), conv_transpose(geometry, x, gw, None, geometry.spatial(_shape(g)))

        return _run(partial(_grad_weight, geometry), (x, g, size), shape), backward

    return tf.custom_gradient(call)


@lru_cache(maxsize=512)
def _kept(build: Callable[..., Any], geometry: Geometry, size: tuple[int, ...], shape: Shape) -> Any:
    return build(geometry, size, shape)


class Settled(NamedTuple):
    """What the shapes that are known come to."""

    shape: Shape  # of the result
    input: Shape  # as far as the size that is asked for tells more
    crop: tuple[tuple[int, int], ...] | None  # (lo, hi) per axis; None where it waits for the size of the kernel
    spec: Spec | None  # with something in place of what is not known


@lru_cache(maxsize=512)
def settle(geometry: Geometry, x: Shape, w: Shape, size: tuple[int, ...] = ()) -> Settled:
    """Of the layer with an input and a weight of these shapes, and with an output of that size, if not empty.

    Raises ArgumentError where what is known does not fit.
    """
    *kernel, out, into = w
    words = geometry._asdict()
    if None in kernel:
        crop = ((0, 0),) * geometry.rank if geometry.padding == "valid" else geometry.padding
        return Settled((None,) * len(x), x, None if size or isinstance(crop, str) else crop, None)
    usual = _problem.smallest_input(size, kernel, words) if size else large_enough(geometry.padding, geometry.stride, geometry.rank)
    channels, first = geometry.axes(len(x))
    known = list(x)
    known[channels] = x[channels] or into or geometry.groups
    known[first : first + geometry.rank] = (u if n is None else n for u, n in zip(usual, geometry.spatial(x), strict=True))
    known = [1 if n is None else n for n in known]  # the batch
    canonical = (known[channels] if into is None else into, 1 if out is None else out, *kernel)
    problem = _problem.forward(known, canonical, output_size=size or None, **words)
    shape = [None if n is None else o for n, o in zip(x, problem.output_shape, strict=True)]
    shape[channels] = None if out is None else problem.output_shape[channels]
    if size:
        shape[first : first + geometry.rank] = size
    spatial = problem.spec.input_size if size else geometry.spatial(x)
    return Settled(tuple(shape), (*x[:first], *spatial, *x[first + geometry.rank :]), problem.spec.crop, problem.spec)


# ---------------------------------------------------------------------------------------------------- to NumPy and back


def _run(function: Callable[..., Array], inputs: tuple[Any, ...], shape: Any) -> Any:
    """A function of arrays on tensors: now, or when the graph runs; shapes and sizes among the inputs may be tuples or tensors."""
    if tf.executing_eagerly():
        return _tensor(function(*map(np.asarray, inputs)))
    result = tf.numpy_function(function, inputs, inputs[0].dtype, stateful=False)  # one that nobody reads is left out of the graph
    result.set_shape(shape)
    return result


def _tensor(array: Array) -> Any:
    """The array as a tensor on the same memory; bfloat16, which NumPy's DLPack lacks, is copied."""
    if array.size and array.dtype.kind == "f" and array.dtype.name != "bfloat16":
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.convert_to_tensor(array)


def _forward(geometry: Geometry, x: Array, w: Array, size: Array, *bias: Array) -> Array:
    asked = tuple(map(int, size))
    out = _empty(settle(geometry, x.shape, w.shape, asked).shape, x.dtype)
    return _functional.conv_transpose(x, WEIGHT.to_canonical(w), *bias, output_size=asked or None, out=out, threads=_threads(),
                                      **geometry._asdict())  # fmt: skip


def _grad_input(geometry: Geometry, g: Array, w: Array, shape: Array) -> Array:
    out = _empty(shape, g.dtype)
    return _functional.conv_transpose_grad_input(g, WEIGHT.to_canonical(w), geometry.spatial(out.shape), out=out, threads=_threads(),
                                                 **geometry._asdict())  # fmt: skip


def _grad_weight(geometry: Geometry, x: Array, g: Array, shape: Array) -> Array:
    out = _empty(shape, x.dtype)
    _functional.conv_transpose_grad_weight(x, g, out.shape[: geometry.rank], out=WEIGHT.to_canonical(out), threads=_threads(),
                                           **geometry._asdict())  # fmt: skip
    return out


def _empty(shape: Any, dtype: np.dtype[Any]) -> Array:
    """A new array that TensorFlow can take over without a copy."""
    sizes = tuple(map(int, shape))
    wanted = prod(sizes) * dtype.itemsize
    memory = np.empty(wanted + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + wanted].view(dtype).reshape(sizes)


def _shape(tensor: Any) -> Any:
    """The shape, as a tuple where it is known."""
    return tuple(tensor.shape) if tensor.shape.is_fully_defined() else tf.shape(tensor)


def _all_but_channels(geometry: Geometry, axes: int) -> list[int]:
    return [axis for axis in range(axes) if axis != geometry.axes(axes)[0]]


def _threads() -> int | None:
    """As many threads as TensorFlow's own operators use; 0 there, and None here, leave the number to the machine."""
    return tf.config.threading.get_intra_op_parallelism_threads() or None
