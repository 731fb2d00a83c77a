# SPDX-License-Identifier: Apache-2.0
"""`tconv.jax.conv_transpose` under JAX's transformations: derivatives of both modes and orders beside lax's, vmap, jit, transposition."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp
from jax.test_util import check_grads

import tconv.jax as ours
from tconv import _jax_ops

jax.config.update("jax_enable_x64", True)

# (kernel, strides, padding, dilation, groups): odd and even kernels below, at and above the stride
LAYERS = [((3,), 2, "SAME", 1, 1), ((4,), 3, "VALID", 2, 1), ((2, 3), (3, 2), "SAME", 1, 2), ((3, 2), (2, 3), [(1, 0), (-1, 2)], (1, 2), 1),
          ((2, 3, 2), 2, "VALID", 1, 1)]  # fmt: skip


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def same(found, expected, eps=1e-11):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=eps * max(1.0, abs(b).max(initial=0)))


def layer(case):
    """x, w and bias, and the layer as a function of them by us and by lax."""
    kernel, strides, padding, dilation, groups = case
    rank = len(kernel)
    x, w, bias = numbers(2, *(4, 3, 2)[:rank], 2 * groups, seed=1), numbers(*kernel, 2, 3 * groups, seed=2), numbers(3 * groups, seed=3)
    strides, dilation = ((v,) * rank if isinstance(v, int) else v for v in (strides, dilation))
    letters = "HWD"[:rank]

    def mine(x, w, bias):
        return ours.conv_transpose(x, w, strides, padding, dilation, bias=bias, groups=groups)

    def theirs(x, w, bias):
        parts = zip(jnp.split(x, groups, -1), jnp.split(w, groups, -1), strict=True)
        numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        return jnp.concatenate([lax.conv_transpose(a, b, strides, padding, dilation, numbers) for a, b in parts], -1) + bias

    return (x, w, bias), mine, theirs


def curved(function):
    return lambda *arrays: jnp.sum(jnp.sin(function(*arrays)))


@pytest.mark.parametrize("case", LAYERS)
def test_derivatives_are_lax_own(case):
    arrays, mine, theirs = layer(case)
    directions = tuple(numbers(*a.shape, seed=9 + i) for i, a in enumerate(arrays))
    every = (0, 1, 2)

    def both_ways(function):
        gradient = jax.grad(curved(function), every)

        def again(*arrays):  # reverse over reverse
            return sum(jnp.vdot(jnp.cos(g), d) for g, d in zip(gradient(*arrays), directions, strict=True))

        return jax.jit(lambda *arrays: {
            "value": function(*arrays),
            "gradient": gradient(*arrays),
            "jvp": jax.jvp(function, arrays, directions)[1],
            "forward over reverse": jax.jvp(gradient, arrays, directions)[1],
            "reverse over reverse": jax.grad(again, every)(*arrays),
        })(*arrays)  # fmt: skip

    found, expected = both_ways(mine), both_ways(theirs)
    for name in expected:
        same(found[name], expected[name])


def test_derivatives_are_those_of_differences_to_the_third_order():
    (x, w, bias), mine, _ = layer(LAYERS[0])
    check_grads(curved(mine), (x, w, bias), order=3, modes=["fwd", "rev"])


def test_jacobians():
    (x, w, bias), mine, theirs = layer(LAYERS[2])
    for way in (jax.jacrev, jax.jacfwd):
        same(way(mine, (0, 1, 2))(x, w, bias), way(theirs, (0, 1, 2))(x, w, bias))
    (x, w, bias), mine, theirs = layer(LAYERS[0])
    same(jax.hessian(curved(mine), 1)(x, w, bias), jax.hessian(curved(theirs), 1)(x, w, bias))


@pytest.mark.parametrize("case", LAYERS)
def test_linear_transposition_is_exact(case):
    (x, w, _), mine, _ = layer(case)
    up = lambda x: mine(x, w, jnp.zeros(w.shape[-1]))  # noqa: E731
    y = up(x)
    g = numbers(*y.shape, seed=5)
    assert abs(jnp.vdot(y, g) - jnp.vdot(x, jax.linear_transpose(lambda x: up(x), x)(g)[0])) < 1e-10


@pytest.mark.parametrize("groups, last, flip", itertools.product((1, 2), (True, False), (True, False)))
def test_vmap_of_every_operator_over_every_array_is_a_loop(groups, last, flip):
    geometry = _jax_ops.Geometry((2, 3), (1, 2), ((1, 0), (0, -2)), groups, last, (2, 0, 3, 1) if last else (0, 1, 2, 3), flip)
    x, kernel = (2, 4, 3, 2 * groups) if last else (2, 2 * groups, 4, 3), {0: 2 * groups, 1: 3, 2: 3, 3: 2}
    w = tuple(kernel[geometry.order.index(axis)] for axis in range(4))
    grad = jax.eval_shape(lambda a, b: _jax_ops.conv_transpose(geometry, a, b), *(jax.ShapeDtypeStruct(s, float) for s in (x, w))).shape
    words = {"geometry": geometry}
    operators = [
        (_jax_ops.layer_p, (x, w), words),
        (_jax_ops.biased_p, (x, w, (3 * groups,)), words),
        (_jax_ops.by_input_p, (grad, w), words | {"size": (4, 3)}),
        (_jax_ops.by_weight_p, (x, grad), words | {"size": (3, 2)}),
    ]
    for primitive, shapes, words in operators:
        for mapped in itertools.product((None, 0, 1, -1), repeat=len(shapes)):
            mapped = [m if m is None or -len(s) <= m <= len(s) else 0 for m, s in zip(mapped, shapes, strict=True)]
            if all(m is None for m in mapped):
                continue
            arrays = [numbers(*s, seed=i) if m is None else numbers(*np.insert(s, m if m >= 0 else len(s), 5), seed=i)
                      for i, (s, m) in enumerate(zip(shapes, mapped, strict=True))]  # fmt: skip
            found = jax.vmap(lambda *a, p=primitive, k=words: p.bind(*a, **k), tuple(mapped))(*arrays)
            picked = ([a if m is None else jnp.take(a, b, m) for a, m in zip(arrays, mapped, strict=True)] for b in range(5))
            same(found, jnp.stack([primitive.bind(*one, **words) for one in picked]))


def test_vmap_inside_of_vmap_and_of_gradients():
    (x, w, bias), mine, theirs = layer(LAYERS[0])
    many = jnp.stack([x, 2 * x, -x]), jnp.stack([w, -w])
    nested = [jax.vmap(jax.vmap(f, (0, None, None)), (None, 0, None))(*many, bias) for f in (mine, theirs)]
    same(*nested)
    per_example = [jax.vmap(jax.grad(curved(f), 1), (0, None, None))(many[0], w, bias) for f in (mine, theirs)]
    same(*per_example)
    spread = [jax.vmap(jax.hessian(curved(f), 0), (0, None, None))(many[0], w, bias) for f in (mine, theirs)]
    same(*spread)


def test_jit_scan_checkpoint_and_no_jit():
    (x, w, bias), mine, theirs = layer(LAYERS[0])
    with jax.disable_jit():
        same(mine(x, w, bias), theirs(x, w, bias))
    same(jax.grad(jax.checkpoint(curved(mine)), 1)(x, w, bias), jax.grad(curved(theirs), 1)(x, w, bias))

    def train(function):
        step = lambda w, _: (w - 0.01 * jax.grad(curved(function), 1)(x, w, bias), jnp.sum(w))  # noqa: E731
        return jax.jit(lambda w: lax.scan(step, w, length=5))(w)

    same(train(mine), train(theirs))


@pytest.mark.parametrize("dtype, eps", [("bfloat16", 2e-2), ("float16", 2e-3), ("float32", 1e-5)])
def test_gradients_of_narrow_dtypes(dtype, eps):
    arrays, mine, theirs = layer(LAYERS[2])
    narrow = [a.astype(dtype) for a in arrays]
    found = jax.grad(curved(mine), (0, 1, 2))(*narrow)
    assert all(g.dtype == dtype for g in found)
    expected = jax.grad(curved(theirs), (0, 1, 2))(*(a.astype("float64") for a in narrow))
    same([g.astype("float64") for g in found], expected, 5 * eps)


def test_training_learns_a_kernel():
    x, true = numbers(4, 8, 8, 2), numbers(4, 4, 2, 1, seed=1)
    target = lax.conv_transpose(x, true, (2, 2), "SAME")

    @jax.jit
    def step(w):
        loss, g = jax.value_and_grad(lambda w: jnp.mean((ours.conv_transpose(x, w, (2, 2), "SAME") - target) ** 2))(w)
        return w - 0.3 * g, loss

    w, losses = jnp.zeros_like(true), []
    for _ in range(300):
        w, loss = step(w)
        losses.append(float(loss))
    assert losses[-1] < 1e-3 * losses[0]
