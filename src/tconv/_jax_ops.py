# SPDX-License-Identifier: Apache-2.0
"""The three operators as JAX primitives, each linear in each of its arrays and closed under transposition.

    primitive                  transposed by its first array     by its second array
    conv_transpose(x, w)       grad_input(ct, w)                 grad_weight(x, ct)
    grad_input(g, w)           conv_transpose(ct, w)             grad_weight(ct, g)
    grad_weight(x, g)          grad_input(g, ct)                 conv_transpose(x, ct)

So JAX derives every order and both modes of differentiation by itself. `vmap` folds its axis into the batch, into the channels, or, where both
arrays have it, into the groups. On a CPU XLA calls the core with its own arrays; elsewhere, and where XLA refuses to, the primitives are
`lax` operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from . import _core
from ._functional import core_steps
from ._runtime import get_num_threads
from ._spec import Axis, Spec

Shape: TypeAlias = tuple[int, ...]

INTO, OUT = 0, 1  # where Geometry.order names the weight's axes of Cin and of Cout / groups


class Geometry(NamedTuple):
    """What the shapes of input, weight and output leave open; a parameter of each primitive."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    crop: tuple[tuple[int, int], ...]
    groups: int
    last: bool  # data is (N, *size, C) and not (N, C, *size)
    order: tuple[int, ...]  # the axes of the weight that hold Cin, Cout / groups, and each spatial axis
    flip: bool  # the kernel lies reversed
    precision: Any = None  # of lax's operators

    @property
    def data(self) -> tuple[int, ...]:
        """The axes of data that hold batch, channels, and each spatial axis."""
        rank = len(self.stride)
        return (0, rank + 1, *range(1, rank + 1)) if self.last else tuple(range(rank + 2))

    @property
    def channels(self) -> int:
        return self.data[1]

    def spec(self, x: Shape, w: Shape) -> Spec:
        """The problem of an input and a weight of these shapes; ArgumentError where it has no meaning."""
        batch, channels, *size = (x[axis] for axis in self.data)
        _, out, *kernel = (w[axis] for axis in self.order)
        numbers = zip(size, kernel, self.stride, self.dilation, *zip(*self.crop, strict=True), strict=True)
        return Spec(tuple(Axis(*n) for n in numbers), batch, channels, out * self.groups, self.groups)

    def data_shape(self, batch: int, channels: int, size: Shape) -> Shape:
        return (batch, *size, channels) if self.last else (batch, channels, *size)

    def weight_shape(self, x: Shape, g: Shape, kernel: Shape) -> Shape:
        sizes = (x[self.channels], g[self.channels] // self.groups, *kernel)
        return tuple(sizes[self.order.index(axis)] for axis in range(len(sizes)))


def conv_transpose(geometry: Geometry, x: Any, w: Any, bias: Any = None) -> Any:
    """The layer, of arrays of one dtype: x as `geometry.data`, w as `geometry.order` says, bias (Cout,)."""
    return layer_p.bind(x, w, geometry=geometry) if bias is None else biased_p.bind(x, w, bias, geometry=geometry)


def move_groups(w: Any, source: int, target: int, groups: int) -> Any:
    """A weight whose axis `source` holds all groups one after the other, with the groups along the axis `target` instead."""
    if groups == 1:
        return w
    shape = list(w.shape)
    w = jnp.moveaxis(w.reshape(*shape[:source], groups, -1, *shape[source + 1 :]), source, target)
    shape[source] //= groups
    shape[target] *= groups
    return w.reshape(shape)


# ---------------------------------------------------------------------------------------------------------- primitives and their shapes

layer_p, by_input_p, by_weight_p, biased_p = map(Primitive, ("tconv", "tconv_grad_input", "tconv_grad_weight", "tconv_biased"))


def _layer_shape(x: Any, w: Any, *bias: Any, geometry: Geometry) -> Shape:
    spec = geometry.spec(x.shape, w.shape)
    return geometry.data_shape(spec.batch, spec.out_channels, spec.output_size)


def _by_input_shape(g: Any, w: Any, *, geometry: Geometry, size: Shape) -> Shape:
    return geometry.data_shape(g.shape[0], w.shape[geometry.order[INTO]], size)


def _by_weight_shape(x: Any, g: Any, *, geometry: Geometry, size: Shape) -> Shape:
    return geometry.weight_shape(x.shape, g.shape, size)


def _grad_input(g: Any, w: Any, geometry: Geometry, x: Any) -> Any:
    """The gradient by an input of the shape of `x`."""
    return by_input_p.bind(g, w, geometry=geometry, size=tuple(x.shape[axis] for axis in geometry.data[2:]))


def _grad_weight(x: Any, g: Any, geometry: Geometry, w: Any) -> Any:
    """The gradient by a weight of the shape of `w`."""
    return by_weight_p.bind(x, g, geometry=geometry, size=tuple(w.shape[axis] for axis in geometry.order[2:]))


# --------------------------------------------------------------------------------------------------------------------- differentiation


def _layer_jvp(primals: Any, tangents: Any, *, geometry: Geometry) -> Any:
    """Of the layer with bias, which is linear in bias and bilinear in x and w."""
    (x, w, bias), (dx, dw, dbias) = primals, tangents
    y = biased_p.bind(x, w, bias, geometry=geometry)
    known = lambda tangent: type(tangent) is not ad.Zero  # noqa: E731
    terms = [layer_p.bind(dx, w, geometry=geometry)] if known(dx) else []
    terms += [layer_p.bind(x, dw, geometry=geometry)] if known(dw) else []
    terms += [lax.broadcast_in_dim(dbias, y.shape, (geometry.channels,))] if known(dbias) else []
    return y, sum(terms[1:], start=terms[0])


ad.defbilinear(layer_p, lambda ct, x, w, geometry: _grad_input(ct, w, geometry, x.aval),
               lambda ct, x, w, geometry: _grad_weight(x, ct, geometry, w.aval))  # fmt: skip
ad.defbilinear(by_input_p, lambda ct, g, w, geometry, size: layer_p.bind(ct, w, geometry=geometry),
               lambda ct, g, w, geometry, size: _grad_weight(ct, g, geometry, w.aval))  # fmt: skip
ad.defbilinear(by_weight_p, lambda ct, x, g, geometry, size: _grad_input(g, ct, geometry, x.aval),
               lambda ct, x, g, geometry, size: layer_p.bind(x, ct, geometry=geometry))  # fmt: skip
ad.primitive_jvps[biased_p] = _layer_jvp


# ------------------------------------------------------------------------------------------------------------------------------- vmap


def _fold(a: Any, mapped: int, axis: int, groups: int = 1) -> Any:
    """The mapped axis inside another: (groups * n,) becomes (groups, mapped, n) in one."""
    a = jnp.moveaxis(a, mapped, 0)
    split = a.reshape(a.shape[0], *a.shape[1 : axis + 1], groups, -1, *a.shape[axis + 2 :])
    return jnp.moveaxis(split, 0, axis + 1).reshape(*a.shape[1 : axis + 1], -1, *a.shape[axis + 2 :])


def _unfold(a: Any, count: int, axis: int, groups: int = 1) -> Any:
    """The mapped axis in front again."""
    split = a.reshape(*a.shape[:axis], groups, count, -1, *a.shape[axis + 1 :])
    return jnp.moveaxis(split, axis + 1, 0).reshape(count, *a.shape[:axis], -1, *a.shape[axis + 1 :])


def _layer_batch(arrays: Any, mapped: Any, *, geometry: Geometry) -> Any:
    (x, w), (of_x, of_w), groups = arrays, mapped, geometry.groups
    if of_w is None:
        return _unfold(layer_p.bind(_fold(x, of_x, 0), w, geometry=geometry), x.shape[of_x], 0), 0
    if of_x is None:
        y = layer_p.bind(x, _fold(w, of_w, geometry.order[OUT]), geometry=geometry)
        return _unfold(y, w.shape[of_w], geometry.channels, groups), 0
    count, side_by_side = x.shape[of_x], geometry._replace(groups=groups * x.shape[of_x])
    y = layer_p.bind(_fold(x, of_x, geometry.channels), _fold(w, of_w, geometry.order[INTO]), geometry=side_by_side)
    return _unfold(y, count, geometry.channels), 0


def _by_input_batch(arrays: Any, mapped: Any, *, geometry: Geometry, size: Shape) -> Any:
    (g, w), (of_g, of_w), groups = arrays, mapped, geometry.groups
    if of_w is None:
        return _unfold(by_input_p.bind(_fold(g, of_g, 0), w, geometry=geometry, size=size), g.shape[of_g], 0), 0
    if of_g is None:
        x = by_input_p.bind(g, _fold(w, of_w, geometry.order[INTO], groups), geometry=geometry, size=size)
        return _unfold(x, w.shape[of_w], geometry.channels, groups), 0
    count, side_by_side = g.shape[of_g], geometry._replace(groups=groups * g.shape[of_g])
    x = by_input_p.bind(_fold(g, of_g, geometry.channels), _fold(w, of_w, geometry.order[INTO]), geometry=side_by_side, size=size)
    return _unfold(x, count, geometry.channels), 0


def _by_weight_batch(arrays: Any, mapped: Any, *, geometry: Geometry, size: Shape) -> Any:
    (x, g), (of_x, of_g), groups = arrays, mapped, geometry.groups
    if of_g is None:
        w = by_weight_p.bind(_fold(x, of_x, geometry.channels, groups), g, geometry=geometry, size=size)
        return _unfold(w, x.shape[of_x], geometry.order[INTO], groups), 0
    if of_x is None:
        w = by_weight_p.bind(x, _fold(g, of_g, geometry.channels, groups), geometry=geometry, size=size)
        return _unfold(w, g.shape[of_g], geometry.order[OUT]), 0
    count, side_by_side = x.shape[of_x], geometry._replace(groups=groups * x.shape[of_x])
    w = by_weight_p.bind(_fold(x, of_x, geometry.channels), _fold(g, of_g, geometry.channels), geometry=side_by_side, size=size)
    return _unfold(w, count, geometry.order[INTO]), 0


def _biased_batch(arrays: Any, mapped: Any, *, geometry: Geometry) -> Any:
    (x, w, bias), (of_x, of_w, of_bias) = arrays, mapped
    if of_w is None and of_bias is None:
        return _unfold(biased_p.bind(_fold(x, of_x, 0), w, bias, geometry=geometry), x.shape[of_x], 0), 0
    if of_x is of_w is None:
        y = layer_p.bind(x, w, geometry=geometry)[None]
    else:
        y, _ = _layer_batch((x, w), (of_x, of_w), geometry=geometry)
    shape = [1] * y.ndim
    shape[geometry.channels + 1] = -1
    if of_bias is not None:
        shape[0], bias = bias.shape[of_bias], jnp.moveaxis(bias, of_bias, 0)
    return y + bias.reshape(shape), 0


# ------------------------------------------------------------------------------------------------------------------ lowering, by lax


def _layer_lax(x: Any, w: Any, *bias: Any, geometry: Geometry) -> Any:
    into, out, *spatial = geometry.order
    w = move_groups(w if geometry.flip else lax.rev(w, spatial), into, out, geometry.groups)
    extents = [d * (w.shape[axis] - 1) for axis, d in zip(spatial, geometry.dilation, strict=True)]  # K - 1
    pads = [(e - lo, e - hi) for e, (lo, hi) in zip(extents, geometry.crop, strict=True)]
    numbers = lax.ConvDimensionNumbers(geometry.data, (out, into, *spatial), geometry.data)
    y = lax.conv_general_dilated(x, w, (1,) * len(spatial), pads, lhs_dilation=geometry.stride, rhs_dilation=geometry.dilation,
                                 dimension_numbers=numbers, feature_group_count=geometry.groups, precision=geometry.precision)  # fmt: skip
    return y + lax.broadcast_in_dim(bias[0], y.shape, (geometry.channels,)) if bias else y


def _by_input_lax(g: Any, w: Any, *, geometry: Geometry, size: Shape) -> Any:
    like = jax.ShapeDtypeStruct(_by_input_shape(g, w, geometry=geometry, size=size), g.dtype)
    return jax.linear_transpose(lambda x: _layer_lax(x, w, geometry=geometry), like)(g)[0]


def _by_weight_lax(x: Any, g: Any, *, geometry: Geometry, size: Shape) -> Any:
    like = jax.ShapeDtypeStruct(_by_weight_shape(x, g, geometry=geometry, size=size), x.dtype)
    return jax.linear_transpose(lambda w: _layer_lax(x, w, geometry=geometry), like)(g)[0]


# ------------------------------------------------------------------------------------------------------------- lowering, by the core


def _native(target: str, shape_of: Callable[..., Shape], problem: Callable[..., tuple[Shape, Shape]]) -> Callable[..., Any]:
    """A primitive as a foreign call; `problem` finds the shapes of x and w among those of arguments and result."""

    def call(*arrays: Any, geometry: Geometry, **size: Any) -> Any:
        dtype, shape = arrays[0].dtype, shape_of(*arrays, geometry=geometry, **size)
        summed = jnp.promote_types(dtype, jnp.float32)  # of half precision
        stride, dilation = core_steps(geometry.spec(*problem(*(a.shape for a in arrays[:2]), shape)))
        attributes = {"stride": stride, "dilation": dilation, "crop": np.ravel(geometry.crop), "order": geometry.order}
        flags = {"groups": geometry.groups, "last": geometry.last, "flip": geometry.flip}
        y = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, summed))(
            *(a.astype(summed) for a in arrays),
            **{name: np.array(value, np.int64) for name, value in attributes.items()},
            **{name: np.int64(value) for name, value in flags.items()})  # fmt: skip
        return y.astype(dtype)

    return call


def _register() -> str | None:
    """Hand the core's functions to XLA; the reason why that cannot be, if so."""
    _core.set_default_threads(get_num_threads())
    try:
        for name, capsule in _core.xla_handlers().items():
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except Exception as error:  # XLA's own, of whichever type, as of an interface that it no longer takes
        return str(error)
    return None


def _define(primitive: Primitive, target: str, shape_of: Callable[..., Shape], batch: Callable[..., Any], by_lax: Callable[..., Any],
            problem: Callable[..., tuple[Shape, Shape]]) -> None:  # fmt: skip
    primitive.def_abstract_eval(lambda *avals, **words: ShapedArray(shape_of(*avals, **words), avals[0].dtype))
    primitive.def_impl(partial(_eager, primitive))
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(by_lax, multiple_results=False))
    if UNAVAILABLE is None:
        mlir.register_lowering(primitive, mlir.lower_fun(_native(target, shape_of, problem), multiple_results=False), platform="cpu")


def _eager(primitive: Primitive, *arrays: Any, **words: Any) -> Any:
    with jax.disable_jit(False):  # or a call inside of `jax.disable_jit` would come back here
        return _compiled(primitive, tuple(words.items()))(*arrays)


@lru_cache(maxsize=512)
def _compiled(primitive: Primitive, words: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(partial(primitive.bind, **dict(words)))


UNAVAILABLE = _register()
_define(layer_p, "tconv_conv_transpose", _layer_shape, _layer_batch, _layer_lax, lambda x, w, y: (x, w))
_define(biased_p, "tconv_conv_transpose", _layer_shape, _biased_batch, _layer_lax, lambda x, w, y: (x, w))
_define(by_input_p, "tconv_grad_input", _by_input_shape, _by_input_batch, _by_input_lax, lambda g, w, x: (x, w))
_define(by_weight_p, "tconv_grad_weight", _by_weight_shape, _by_weight_batch, _by_weight_lax, lambda x, g, w: (x, w))
