# SPDX-License-Identifier: Apache-2.0
"""The layer on TensorFlow's tensors, by operators of TensorFlow whose kernels are the core, closed under differentiation.

    operator                   gradient by its first tensor    by its second tensor
    conv_transpose(x, w)       grad_input(g, w)                grad_weight(x, g)
    grad_input(g, w)           conv_transpose(ct, w)           grad_weight(ct, g)
    grad_weight(x, g)          grad_input(g, ct)               conv_transpose(x, ct)

Weights have TensorFlow's axes, (*k, Cout / groups, Cin). All but the sizes is an attribute, the crop as numbers; where that waits for the
size of a kernel or has no room in 64 bits, and where the operators are not to be had, the way is by Python.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from . import _core
from . import _tensorflow_python as by_python
from ._runtime import check_memory, get_num_threads
from ._tensorflow_python import Geometry, Shape, settle

_LIMIT = 2**59  # of an attribute's numbers: a stride of one input beyond it means nothing, all else is refused
_ATTRIBUTES = ("strides", "dilations", "crop", "groups", "channels_last")


def conv_transpose(geometry: Geometry, x: Any, w: Any, bias: Any = None, size: tuple[int, ...] = ()) -> Any:
    """The layer: x (N, *I, Cin) or (N, Cin, *I), or without N; w (*k, Cout / groups, Cin); `size` asks for an output size, if not empty."""
    call = _call(geometry, tuple(x.shape), tuple(w.shape), size, x.dtype.size)
    if UNAVAILABLE is not None or call.attributes is None:
        return by_python.conv_transpose(geometry, x, w, bias, size)
    if call.input is not None:
        x = tf.ensure_shape(x, call.input)
    tensors = (x, w) if bias is None else (x, w, bias)
    if x.dtype.size == 2:  # half precision is summed in float32 and rounded once
        tensors = tuple(tf.cast(tensor, tf.float32) for tensor in tensors)
    y = (_OPS.tconv_conv_transpose if bias is None else _OPS.tconv_conv_transpose_bias)(*tensors, **call.attributes)
    if not tf.executing_eagerly():
        y.set_shape(call.shape)
    return tf.cast(y, x.dtype) if x.dtype.size == 2 else y


class _Call(NamedTuple):
    shape: Shape  # of the result
    input: Shape | None  # what the input must turn out to have, where the size that is asked for fixes more than is known
    attributes: dict[str, Any] | None  # of the operators; None where the crop waits for the size of the kernel, or a number is too large


@lru_cache(maxsize=512)
def _call(geometry: Geometry, x: Shape, w: Shape, size: tuple[int, ...], itemsize: int) -> _Call:
    settled = settle(geometry, x, w, size)
    if None not in settled.shape:
        check_memory(settled.shape, itemsize, settled.spec)
    if settled.crop is None:
        return _Call(settled.shape, None, None)
    crop = [number for pair in settled.crop for number in pair]
    if max(map(abs, (*geometry.stride, *geometry.dilation, *crop))) >= _LIMIT:
        return _Call(settled.shape, None, None)
    attributes = (list(geometry.stride), list(geometry.dilation), crop, geometry.groups, geometry.layout == "channels_last")
    return _Call(
        settled.shape, settled.input if size and None in geometry.spatial(x) else None, dict(zip(_ATTRIBUTES, attributes, strict=True))
    )


# ---------------------------------------------------------------------------------------------------- gradients


# For each tensor of an operator, the function that gives the gradient by it, and of which tensors: operands by number, and "g".
_GRADIENTS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "TconvConvTranspose": (("tconv_grad_input", "g", 1), ("tconv_grad_weight", 0, "g")),
    "TconvConvTransposeBias": (("tconv_grad_input", "g", 1), ("tconv_grad_weight", 0, "g"), ("tconv_grad_bias", "g")),
    "TconvGradInput": (("tconv_conv_transpose", "g", 1), ("tconv_grad_weight", "g", 0)),
    "TconvGradWeight": (("tconv_grad_input", 1, "g"), ("tconv_conv_transpose", 0, "g")),
}


def _gradient(op: Any, g: Any) -> list[Any]:
    """The gradients by the tensors of an operator; in eager mode by those alone that are wanted, as a graph leaves out the others."""
    attributes = {name: op.get_attr(name) for name in _ATTRIBUTES}
    unwanted = getattr(op, "skip_input_indices", None) or ()
    found: list[Any] = [None] * len(op.inputs)
    for index, (function, *operands) in enumerate(_GRADIENTS[op.type]):
        if index not in unwanted:
            found[index] = getattr(_OPS, function)(*(g if o == "g" else op.inputs[o] for o in operands), **attributes)
            found[index].set_shape(op.inputs[index].shape)
    return found


def _gradient_of_by_bias(op: Any, g: Any) -> Any:
    """Every position of a channel has a share in it."""
    positions = len(op.get_attr("strides"))
    g = g if op.get_attr("channels_last") else tf.reshape(g, (-1, *[1] * positions))
    return tf.broadcast_to(g, tf.shape(op.inputs[0]))


# ---------------------------------------------------------------------------------------------------- registration


def _load() -> tuple[Any, str | None]:
    """TensorFlow's functions of the operators, or the reason why they are not to be had."""
    _core.set_default_threads(get_num_threads())
    name = "libtensorflow_framework.2.dylib" if sys.platform == "darwin" else "libtensorflow_framework.so.2"
    if reason := _core.find_tensorflow(f"{tf.sysconfig.get_lib()}/{name}"):
        return None, reason
    try:
        found = tf.load_op_library(str(Path(__file__).with_name("libtconv_tensorflow.ops")))
    except (tf.errors.OpError, RuntimeError) as error:
        return None, str(error)
    return found, None if hasattr(found, "tconv_conv_transpose") else "TensorFlow has loaded the library, but found no operators in it"


_OPS, UNAVAILABLE = _load()

if UNAVAILABLE is None:
    for _name in _GRADIENTS:
        tf.RegisterGradient(_name)(_gradient)
    tf.RegisterGradient("TconvGradBias")(_gradient_of_by_bias)
