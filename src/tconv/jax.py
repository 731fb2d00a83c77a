# SPDX-License-Identifier: Apache-2.0
"""tconv in JAX: the layer as a function of arrays, with the words of `jax.lax.conv_transpose`.

On a CPU XLA calls tconv's core with its own arrays, inside `jit` and out of it, with as many threads as `tconv.set_num_threads` says; on
other devices the function is made of `lax` operators. `UNAVAILABLE` is None, or the reason why XLA cannot call the core here, and then
`lax` computes on the CPU too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from jax import lax
from jax import numpy as jnp

from . import _jax_ops as ops
from ._functional import key
from ._jax_ops import UNAVAILABLE
from ._problem import check_bias
from ._spec import ArgumentError, Ints, Spec, at_least_one, integer
from .conventions import jax as convention
from .conventions._jax import SPATIAL

__all__ = ["UNAVAILABLE", "conv_transpose"]

_DTYPES = ("float32", "float64", "float16", "bfloat16")
_NAMES = {"stride": "strides", "dilation": "rhs_dilation"}  # ours, and JAX's


def conv_transpose(
    x: Any,
    w: Any,
    strides: Ints,
    padding: str | Sequence[tuple[int, int]],
    rhs_dilation: Ints | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    use_consistent_padding: bool = False,
    *,
    bias: Any = None,
    groups: int = 1,
    output_size: Ints | None = None,
) -> jax.Array:
    """Transposed convolution of JAX arrays, as `jax.lax.conv_transpose` has it, with groups, bias and output sizes besides.

    Shapes, with one to three spatial axes (their number is that of `w`) and without `dimension_numbers`:
        x     (N, *I, Cin); N may be absent
        w     (*kernel_size, Cin / groups, Cout), its kernel reversed as JAX has it; with `transpose_kernel` it is
              (*kernel_size, Cout / groups, Cin), not reversed, as in TensorFlow
        bias  (Cout,) or None
        ->    (N, *O, Cout)

    `padding` is "SAME", O = I * strides; "VALID", O = (I - 1) * strides + max(K, strides) with K = rhs_dilation * (kernel_size - 1) + 1;
    or one (a, b) pair per spatial axis, which crops (K - 1 - a, K - 1 - b) from the full output of (I - 1) * strides + K. With
    `use_consistent_padding` a pair is the crop itself, and a negative number appends zeros. `output_size` asks for another size of
    those that the convolution with the same words would map back to I.

    `groups` is the `feature_group_count` of JAX's other convolutions. `precision` means something on other devices only.
    `preferred_element_type` is the dtype of the result; the sum is at least as exact. float32 and float64 are computed as such, float16
    and bfloat16 are summed in float32. Derivatives of any order by x, w and bias exist in forward and reverse mode, and `vmap` over each.

    Raises `ArgumentError` (a ValueError), which names the argument, its value and the rule.

    >>> import jax.numpy as jnp, tconv.jax
    >>> x, w = jnp.array([[0.0, 1], [2, 3]]), jnp.array([[4.0, 1], [2, 3]])
    >>> tconv.jax.conv_transpose(x[None, ..., None], w[..., None, None], (1, 1), "VALID", transpose_kernel=True)[0, ..., 0]
    Array([[ 0.,  4.,  1.],
           [ 8., 16.,  6.],
           [ 4., 12.,  9.]], dtype=float32)

    The meaning of the words is in `tconv.conventions.jax`.
    """
    x, w = _array("x", x), _array("w", w)
    bias = None if bias is None else _array("bias", bias)
    dtype, result = _dtypes(preferred_element_type, x=x, w=w, bias=bias)
    try:
        plan = _plan(x.shape, w.shape, key("strides", strides), key("padding", padding), key("rhs_dilation", rhs_dilation),
                     _hashable(dimension_numbers), bool(transpose_kernel), _precision(precision), bool(use_consistent_padding),
                     integer("groups", groups), key("output_size", output_size))  # fmt: skip
    except ArgumentError as error:
        raise ArgumentError(_NAMES.get(error.argument, error.argument), error.value, error.rule, error.problem) from None
    if bias is not None:
        check_bias(bias.shape, plan.channels)
        bias = bias.astype(dtype)
    if plan.batch_axis is not None:
        x = jnp.expand_dims(x, plan.batch_axis[0])
    if plan.move_groups:
        w = ops.move_groups(w, *plan.move_groups)
    y = ops.conv_transpose(plan.geometry, _transposed(x, plan.before).astype(dtype), w.astype(dtype), bias)
    y = _transposed(y, plan.after).astype(result)
    return y if plan.batch_axis is None else jnp.squeeze(y, plan.batch_axis[1])


class _Plan(NamedTuple):
    """What the shapes and words of a call come to."""

    geometry: ops.Geometry
    channels: int  # of the output
    batch_axis: tuple[int, int] | None  # of x and of the result, where x lacks it
    before: tuple[int, ...] | None  # the transposition of x, where dimension_numbers want one
    after: tuple[int, ...] | None  # and of the result
    move_groups: tuple[int, int, int] | None  # what the weight's groups take


@lru_cache(maxsize=1024)
def _plan(x: tuple[int, ...], w: tuple[int, ...], strides: Any, padding: Any, rhs_dilation: Any, dimension_numbers: Any,
          transpose_kernel: bool, precision: Any, use_consistent_padding: bool, groups: int, output_size: Any) -> _Plan:  # fmt: skip
    rank = len(w) - 2
    if not 1 <= rank <= 3:
        raise ArgumentError("w", w, "must have one to three spatial axes and two of channels, 3 to 5 in all")
    if len(x) not in (rank + 1, rank + 2):
        raise ArgumentError("x", x, f"must have {rank + 2} axes for w of shape {w}, or {rank + 1} without the batch")
    numbers = _numbers(dimension_numbers, rank)
    batch_axis = (numbers.lhs_spec[0], numbers.out_spec[0]) if len(x) == rank + 1 else None
    if batch_axis:
        x = (*x[: batch_axis[0]], 1, *x[batch_axis[0] :])
    last, before, after = _transpositions(numbers, rank)
    out, into, *spatial = numbers.rhs_spec
    moves = None if transpose_kernel or groups == 1 else (out, into, groups)
    if transpose_kernel:
        out, into = into, out
    at_least_one("groups", [groups])
    _check_channels(x[numbers.lhs_spec[1]], w, (into, out), moves is not None, groups)
    size, kernel = [x[axis] for axis in numbers.lhs_spec[2:]], [w[axis] for axis in spatial]
    spec = convention(input_size=size, kernel_size=kernel, strides=strides, padding=padding, rhs_dilation=rhs_dilation,
                      transpose_kernel=transpose_kernel, use_consistent_padding=use_consistent_padding).spec  # fmt: skip
    if output_size is not None:
        words = padding.lower() if isinstance(padding, str) else spec.crop
        spec = Spec.build(size, kernel, stride=spec.stride, dilation=spec.dilation, padding=words, output_size=output_size)
    geometry = ops.Geometry(spec.stride, spec.dilation, spec.crop, groups, last, (into, out, *spatial), not transpose_kernel, precision)
    return _Plan(geometry, w[out] if moves else w[out] * groups, batch_axis, before, after, moves)


def _check_channels(channels: int, w: tuple[int, ...], axes: tuple[int, int], groups_outside: bool, groups: int) -> None:
    """The channels of x and w fit, said in the caller's axes."""
    into, out = w[axes[0]], w[axes[1]]
    for name, count in (("in_channels", channels), ("out_channels", out if groups_outside else groups)):
        if count % groups:
            raise ArgumentError("groups", groups, f"must divide {name}={count}")
    wanted = into * groups if groups_outside else into
    if channels != wanted:
        raise ArgumentError("x", channels, f"channels, where w of shape {w} takes {wanted}")


def _numbers(asked: Any, rank: int) -> lax.ConvDimensionNumbers:
    default = (f"N{SPATIAL[rank]}C", f"{SPATIAL[rank]}IO", f"N{SPATIAL[rank]}C")
    shape = (1,) * (rank + 2)
    try:
        return lax.conv_dimension_numbers(shape, shape, default if asked is None else asked)
    except (TypeError, ValueError, AttributeError) as error:
        raise ArgumentError("dimension_numbers", asked, f"must be as {default} ({error})") from None


def _transpositions(numbers: lax.ConvDimensionNumbers, rank: int) -> tuple[bool, Any, Any]:
    """Whether the channels are last inside, and what x and the result take to be and to leave so: nothing, for the usual numbers."""
    last, first = (0, rank + 1, *range(1, rank + 1)), tuple(range(rank + 2))
    inside = first if numbers.lhs_spec == first or (numbers.lhs_spec != last and numbers.out_spec == first) else last
    before, after = [0] * (rank + 2), [0] * (rank + 2)
    for here, given, wanted in zip(inside, numbers.lhs_spec, numbers.out_spec, strict=True):
        before[here], after[wanted] = given, here
    return inside == last, None if before == list(first) else tuple(before), None if after == list(first) else tuple(after)


def _transposed(a: Any, axes: tuple[int, ...] | None) -> Any:
    return a if axes is None else a.transpose(axes)


def _array(name: str, value: Any) -> jax.Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, type(value).__name__, f"must be an array ({error})") from None


def _dtypes(preferred: Any, **arrays: Any) -> tuple[Any, Any]:
    """The dtype of the computation and that of the result."""
    like = arrays["x"].dtype
    if like.name not in _DTYPES:
        raise ArgumentError("x", like.name, f"must be an array of {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}")
    for name, array in arrays.items():
        if array is not None and array.dtype != like:
            raise ArgumentError(name, array.dtype.name, f"must have the dtype of x, {like.name}")
    if preferred is None:
        return like, like
    try:
        result = jnp.dtype(preferred)
    except TypeError:
        raise ArgumentError("preferred_element_type", preferred, "must be a dtype") from None
    if result.name not in _DTYPES:
        raise ArgumentError("preferred_element_type", result.name, f"must be one of {', '.join(_DTYPES)}")
    return jnp.promote_types(like, result), result


def _hashable(numbers: Any) -> Any:
    return tuple(numbers) if isinstance(numbers, list) else numbers


def _precision(value: Any) -> Any:
    """As lax takes it: None, a `lax.Precision` or its name, or a pair of these."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return tuple(map(_precision, value))
    try:
        return None if value is None else lax.Precision(value)
    except (TypeError, ValueError):
        raise ArgumentError("precision", value, "must be None, a lax.Precision or its name, or a pair of these") from None
