# SPDX-License-Identifier: Apache-2.0
"""tconv in TensorFlow: the layer as a function of tensors, with `tf.nn.conv_transpose`'s names and axes.

Tensors are computed on the CPU, on their own memory, by operators that TensorFlow calls without Python, with as many threads as
`tf.config.threading.get_intra_op_parallelism_threads()` says. `UNAVAILABLE` is None, or the reason why TensorFlow cannot have these
operators here, and then all goes through NumPy, in graphs by `tf.numpy_function`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import tensorflow as tf

from . import _tensorflow_ops as ops
from ._functional import key
from ._problem import check_bias
from ._spec import ArgumentError, Ints, integer, integers, is_single, pairs
from ._tensorflow_ops import UNAVAILABLE
from ._tensorflow_python import Geometry, Shape
from .conventions._tensorflow import FORMATS, spatial

__all__ = ["UNAVAILABLE", "conv_transpose"]

_DTYPES = (tf.float32, tf.float64, tf.float16, tf.bfloat16)
_NAMES = {"stride": "strides", "dilation": "dilations", "output_size": "output_shape"}  # ours, and TensorFlow's


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]  # it has no flow for a graph, and errors stay themselves
def conv_transpose(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    strides: Ints = 1,
    padding: str | int | Sequence[Any] = "valid",
    output_shape: Any = None,
    data_format: str | None = None,
    dilations: Ints = 1,
    groups: int = 1,
) -> Any:
    """Transposed convolution of tensors, as `tf.nn.conv_transpose` has it, with groups, bias and any crop besides.

    Shapes, with one to three spatial axes (their number is that of `w`):
        x     (N, *I, Cin), or (N, Cin, *I) with data_format="NCW", "NCHW" or "NCDHW"; N may be absent
        w     (*kernel_size, Cout / groups, Cin), as in TensorFlow
        bias  (Cout,) or None
        ->    (N, *O, Cout), or (N, Cout, *O)
    An x and a w of one or of two axes both have no channels: the textbook case. There float32 stays, and all else is float64.

    `padding` is "valid", which crops nothing, "same", O = I * strides, or what is cropped from the full output: an int, one
    int per axis, or one (lo, hi) pair per axis, where a negative number appends zeros; TensorFlow's list of pairs for all
    axes of x is taken too, and capitals. (TensorFlow's own default is "SAME".) `output_shape` asks for another size of
    those that give I back, TensorFlow's whole shape or the spatial sizes alone, known when a function is traced.
    `strides` and `dilations` are an int, one per spatial axis, or one per axis of x.

    float32 and float64 are computed as such; float16 and bfloat16 are accumulated in float32. There are gradients of any order
    by x, w and bias. In `tf.function` sizes may be unknown, the axes of the data and their number may not; there is no
    `jit_compile=True`.

    Raises `ArgumentError` (a ValueError), which names the argument, its value and the rule; where a shape is known only when
    a graph runs, TensorFlow's InvalidArgumentError with the same text.

    >>> import tensorflow as tf, tconv.tensorflow
    >>> tconv.tensorflow.conv_transpose(tf.constant([[0, 1], [2, 3]]), tf.constant([[4, 1], [2, 3]])).numpy()
    array([[ 0.,  4.,  1.],
           [ 8., 16.,  6.],
           [ 4., 12.,  9.]])
    >>> x, w = tf.ones((1, 4, 4, 1)), tf.ones((3, 3, 1, 1))
    >>> tconv.tensorflow.conv_transpose(x, w, strides=2, padding="same").shape
    TensorShape([1, 8, 8, 1])

    The meaning of the words is in `tconv.conventions.tensorflow`.
    """
    try:
        return _conv_transpose(x, w, bias, strides, padding, output_shape, data_format, dilations, groups)
    except ArgumentError as error:
        said = ArgumentError(_NAMES.get(error.argument, error.argument), error.value, error.rule, error.problem)
        said.ag_pass_through = True  # type: ignore[attr-defined]  # or a function that AutoGraph reads would raise a StagingError of it
        raise said from None


def _conv_transpose(x: Any, w: Any, bias: Any, strides: Any, padding: Any, output_shape: Any, data_format: str | None, dilations: Any,
                    groups: Any) -> Any:  # fmt: skip
    x, w = _tensor("x", x), _tensor("w", w)
    if plain := len(w.shape) < 3:
        x, w = _with_channels(x, w, data_format)
    rank = len(w.shape) - 2
    if rank > 3:
        raise ArgumentError("w", tuple(w.shape), "must have the axes (*kernel_size, out_channels / groups, in_channels), 3 to 5 in all")
    bias = None if bias is None else _tensor("bias", bias)
    _check_dtypes(x=x, w=w, bias=bias)
    layout = _layout(data_format, rank)
    geometry = _geometry(rank, layout, key("strides", strides), key("padding", padding), key("dilations", dilations), key("groups", groups))
    _check_shapes(geometry, tuple(x.shape), tuple(w.shape), None if bias is None else tuple(bias.shape))
    y = ops.conv_transpose(geometry, x, w, bias, _sizes(output_shape, geometry, x, w))
    return y[0, ..., 0] if plain else y


def _tensor(name: str, value: Any) -> Any:
    try:
        tensor = value if isinstance(value, tf.Tensor) else tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, type(value).__name__, f"must be a dense tensor ({error})") from None
    if tensor.shape.rank is None:
        raise ArgumentError(name, tensor.shape, "must have a known number of axes")
    return tensor


def _with_channels(x: Any, w: Any, data_format: str | None) -> tuple[Any, Any]:
    """The textbook case as a layer of one channel, in a dtype that is computed."""
    if not 1 <= len(w.shape) == len(x.shape):
        raise ArgumentError("x", tuple(x.shape), f"must have as many axes as w of shape {tuple(w.shape)}, which has no channels")
    if data_format is not None:
        raise ArgumentError("data_format", data_format, f"means nothing for w of shape {tuple(w.shape)}, which has no channels")
    for name, tensor in (("x", x), ("w", w)):
        if not (tensor.dtype.is_floating or tensor.dtype.is_integer):
            raise ArgumentError(name, tensor.dtype.name, "must hold real numbers")
    dtype = tf.float32 if x.dtype == w.dtype == tf.float32 else tf.float64
    return tf.cast(x, dtype)[None, ..., None], tf.cast(w, dtype)[..., None, None]


def _check_dtypes(**tensors: Any) -> None:
    like = tensors["x"].dtype
    if like not in _DTYPES:
        raise ArgumentError("x", like.name, "must be a tensor of float32, float64, float16 or bfloat16")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != like:
            raise ArgumentError(name, tensor.dtype.name, f"must have the dtype of x, {like.name}")


@lru_cache(maxsize=512)
def _check_shapes(geometry: Geometry, x: Shape, w: Shape, bias: Shape | None) -> None:
    """What has to fit, said in TensorFlow's axes; what is None is not known yet."""
    rank = geometry.rank
    if len(x) not in (rank + 1, rank + 2):
        raise ArgumentError("x", x, f"must have {rank + 2} axes for w of shape {w}, or {rank + 1} without the batch")
    channels = x[geometry.axes(len(x))[0]]
    out, into = w[-2:]
    if None not in (channels, into) and channels != into:
        raise ArgumentError("x", x, f"has {channels} channels where w of shape {w} takes {into}")
    if bias is not None and None not in (out, bias[0] if len(bias) == 1 else 0):
        check_bias(bias, out * geometry.groups)


def _layout(data_format: str | None, rank: int) -> str:
    last, first = FORMATS[rank]
    if data_format not in (None, last, first):
        raise ArgumentError("data_format", data_format, f"must be {last} or {first} for {rank} spatial axes")
    return "channels_first" if data_format == first else "channels_last"


@lru_cache(maxsize=512)
def _geometry(rank: int, layout: str, strides: Any, padding: Any, dilations: Any, groups: int) -> Geometry:
    crop = padding.lower() if isinstance(padding, str) else tuple(pairs("padding", _inner_pairs(padding, rank, layout), rank))
    return Geometry(spatial("strides", strides, rank, layout), crop, spatial("dilations", dilations, rank, layout),
                    integer("groups", groups), layout)  # fmt: skip


def _inner_pairs(padding: Any, rank: int, layout: str) -> Any:
    """The padding of the spatial axes, from TensorFlow's list for all axes of the data."""
    if is_single(padding) or len(padding) != rank + 2:
        return padding
    found = pairs("padding", padding, rank + 2)
    outer, inner = (found[:2], found[2:]) if layout == "channels_first" else ([found[0], found[-1]], found[1:-1])
    if any(map(any, outer)):
        raise ArgumentError("padding", padding, "must hold (0, 0) for batch and channels")
    return inner


def _sizes(output_shape: Any, geometry: Geometry, x: Any, w: Any) -> tuple[int, ...]:
    """The spatial sizes that are asked for, or none; batch and channels, where TensorFlow wants them named, must be those of x and w."""
    if output_shape is None:
        return ()
    known = _known(output_shape)
    last = geometry.layout == "channels_last"
    if len(known) != geometry.rank + 2:
        known = [None, *known, None] if last else [None, None, *known]
    batch, channels = known[0], known[-1 if last else 1]
    out = None if w.shape[-2] is None else w.shape[-2] * geometry.groups
    if any(None not in pair and pair[0] != pair[1] for pair in ((batch, x.shape[0]), (channels, out))):
        raise ArgumentError("output_shape", known, f"must hold the batch of x and the channels of w, {x.shape[0]} and {out}")
    sizes = known[1:-1] if last else known[2:]
    if None in sizes:
        raise ArgumentError("output_shape", known, "must have spatial sizes that are known when the function is traced")
    return integers("output_shape", sizes, geometry.rank)


def _known(shape: Any) -> Any:
    """The sizes as far as a graph knows them; None, which only batch and channels may be, where it does not."""
    if tf.is_tensor(shape):
        shape = tf.unstack(shape) if len(shape.shape) else [shape]
    if is_single(shape):
        return [shape]
    return [tf.get_static_value(size) if tf.is_tensor(size) else size for size in shape]
