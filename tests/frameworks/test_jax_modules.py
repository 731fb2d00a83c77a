# SPDX-License-Identifier: Apache-2.0
"""The layers of `tconv.flax`, `tconv.equinox` and `tconv.haiku` beside the frameworks' own: shared weights, values, gradients, training."""

from __future__ import annotations

import equinox as eqx
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

import tconv.equinox
import tconv.flax
import tconv.haiku
from tconv import ArgumentError

jax.config.update("jax_enable_x64", True)


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def same(found, expected, eps=1e-5):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert found and len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(*(np.asarray(v, np.float64) for v in (a, b)), rtol=0, atol=eps * max(1.0, float(abs(b).max())))


FLAX = [
    (((3,), None), {"padding": "SAME"}),
    (((4,), 3), {"padding": "VALID", "transpose_kernel": True}),
    (((3, 2), (2, 3)), {"padding": [(1, 0), 2], "kernel_dilation": (1, 2)}),
    (((4, 4), (2, 2)), {"padding": 1, "use_bias": False}),
    (((2, 3, 2), (2, 1, 3)), {"padding": "SAME", "mask": "a mask"}),
    (((3, 3), (2, 2)), {"padding": "CIRCULAR", "transpose_kernel": True}),
    (((4, 4), (2, 2)), {"dtype": jnp.bfloat16}),
    (((4, 4), (2, 2)), {"param_dtype": jnp.bfloat16, "preferred_element_type": jnp.float32}),
    (((3,), 2), {"param_dtype": jnp.float64}),
]


@pytest.mark.parametrize("arguments, words", FLAX)
def test_flax(arguments, words):
    kernel = arguments[0]
    if "mask" in words:
        words = words | {"mask": jnp.asarray(np.random.default_rng(0).random((*kernel, 2, 3)) < 0.5, jnp.float32)}
    stock, mine = (kind(2, 3, *arguments, **words, rngs=nnx.Rngs(0)) for kind in (nnx.ConvTranspose, tconv.flax.ConvTranspose))
    if stock.bias is not None:
        stock.bias[...] = numbers(3, seed=1).astype(stock.bias.dtype)
    nnx.update(mine, nnx.state(stock))
    assert nnx.to_flat_state(nnx.state(mine)) is not None
    narrow = {jnp.bfloat16: 2e-2}.get(words.get("dtype") or words.get("param_dtype"), 1e-5)
    size = (5, 4, 3)[: len(kernel)]
    dtype = words.get("param_dtype", jnp.float32)
    for batch in ((2,), (), (2, 3)):
        x = numbers(*batch, *size, 2, seed=2).astype(dtype)
        same(mine(x), stock(x), narrow)
        loss = lambda model, x: jnp.sum(jnp.sin(model(x).astype(jnp.float64)))  # noqa: E731
        same(nnx.grad(loss)(mine, x), nnx.grad(loss)(stock, x), 5 * narrow)


def test_flax_trains_inside_jit():
    class Up(nnx.Module):
        def __init__(self, kind):
            self.first = kind(2, 4, (4, 4), (2, 2), rngs=nnx.Rngs(0))
            self.second = kind(4, 1, (3, 3), (2, 2), transpose_kernel=True, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    x, target = numbers(2, 4, 4, 2).astype(jnp.float32), numbers(2, 16, 16, 1, seed=1).astype(jnp.float32)

    def losses(kind):
        graph, state = nnx.split(Up(kind))
        value = jax.jit(jax.value_and_grad(lambda s: jnp.mean((nnx.merge(graph, s)(x) - target) ** 2)))
        found = []
        for _ in range(50):
            loss, gradient = value(state)
            state = jax.tree.map(lambda p, g: p - 0.1 * g, state, gradient)
            found.append(float(loss))
        return found

    mine, stock = losses(tconv.flax.ConvTranspose), losses(nnx.ConvTranspose)
    np.testing.assert_allclose(mine, stock, rtol=1e-4)
    assert mine[-1] < mine[0]


EQUINOX = [
    ((1, 2, 4, 3), {"stride": 2}),
    ((1, 2, 4, 4), {"stride": 3, "padding": "SAME_LOWER", "output_padding": 2}),
    ((1, 2, 4, 1), {"stride": 3, "padding": "SAME", "output_padding": 1}),
    ((1, 2, 4, 1), {"stride": 4, "padding": "SAME_LOWER", "output_padding": 2}),
    ((2, 4, 6, (3, 2)), {"stride": (2, 3), "padding": [(1, 0), (0, 1)], "output_padding": (1, 2), "groups": 2}),
    ((2, 2, 3, 4), {"stride": 2, "padding": "SAME", "dilation": (1, 2), "use_bias": False}),
    ((2, 2, 3, 3), {"stride": 2, "padding": "SAME", "padding_mode": "CIRCULAR"}),
    ((2, 3, 3, 3), {"stride": 2, "padding": "VALID", "groups": 3}),
    ((3, 2, 3, (2, 3, 2)), {"stride": 2, "padding": 1, "dtype": jnp.float64}),
]


@pytest.mark.parametrize("arguments, words", EQUINOX)
def test_equinox(arguments, words):
    key = jax.random.key(0)
    rank, rest = arguments[0], arguments[1:]
    kinds = [(getattr(eqx.nn, f"ConvTranspose{rank}d"), getattr(tconv.equinox, f"ConvTranspose{rank}d"), rest),
             (eqx.nn.ConvTranspose, tconv.equinox.ConvTranspose, arguments)]  # fmt: skip
    words = {"dtype": jnp.float32} | words
    for theirs, ours, given in kinds:
        stock, mine = (kind(*given, **words, key=key) for kind in (theirs, ours))
        assert isinstance(mine, theirs)
        x = numbers(rest[0], *(5, 4, 3)[:rank], seed=2).astype(words["dtype"])
        same(mine(x), stock(x))
        many = jnp.stack([x, -2 * x])
        same(jax.vmap(mine)(many), jax.vmap(stock)(many))
        loss = lambda model, x: jnp.sum(jnp.sin(model(x)))  # noqa: E731
        same(eqx.filter_jit(eqx.filter_grad(loss))(mine, x), eqx.filter_grad(loss)(stock, x), 1e-4)


def test_equinox_ensembles_map_over_weights():
    keys, x = jax.random.split(jax.random.key(0), 4), numbers(2, 5, 5).astype(jnp.float32)
    results = []
    for kind in (eqx.nn.ConvTranspose2d, tconv.equinox.ConvTranspose2d):
        many = eqx.filter_vmap(lambda key, kind=kind: kind(2, 3, 4, stride=2, dtype=jnp.float32, key=key))(keys)
        results.append(eqx.filter_vmap(lambda model: model(x))(many))
    same(*results)


HAIKU = [
    ((1, 4, 3), {"stride": 2}),
    ((1, 4, 4), {"stride": 3, "padding": "VALID", "output_shape": 17, "data_format": "NCW"}),
    ((2, 3, (3, 2)), {"stride": (2, 3), "padding": [(1, 0), (2, 2)], "with_bias": False}),
    ((2, 3, 4), {"stride": 2, "output_shape": (9, 8), "b_init": hk.initializers.RandomNormal()}),
    ((2, 3, 3), {"stride": 2, "data_format": "NCHW", "mask": "a mask"}),
    ((3, 3, 2), {"stride": (2, 1, 3), "padding": "VALID", "b_init": hk.initializers.RandomNormal()}),
]


@pytest.mark.parametrize("arguments, words", HAIKU)
def test_haiku(arguments, words):
    rank, *rest = arguments
    if "mask" in words:
        words = words | {"mask": jnp.asarray(np.random.default_rng(0).random((3, 3, 3, 2)) < 0.5, jnp.float32)}
    size = (5, 4, 3)[:rank]
    first = words.get("data_format", "C").startswith("NC")
    x = numbers(2, *((2, *size) if first else (*size, 2)), seed=2).astype(jnp.float32)
    kinds = [(getattr(hk, f"Conv{rank}DTranspose"), getattr(tconv.haiku, f"Conv{rank}DTranspose"), rest, words)]
    plain = words | {"data_format": "channels_first" if first else "channels_last"}
    kinds.append((hk.ConvNDTranspose, tconv.haiku.ConvNDTranspose, arguments, plain))
    for theirs, ours, given, given_words in kinds:
        stock, mine = (hk.without_apply_rng(hk.transform(lambda x, kind=kind, a=given, w=given_words: kind(*a, **w)(x)))
                       for kind in (theirs, ours))  # fmt: skip
        parameters = stock.init(jax.random.key(0), x)
        same(mine.init(jax.random.key(0), x), parameters, 0)  # the same names, shapes and initial values
        assert list(mine.init(jax.random.key(0), x)) == list(parameters)
        for data in (x, x[0]):
            same(mine.apply(parameters, data), stock.apply(parameters, data))
        loss = lambda p, x, model: jnp.sum(jnp.sin(model.apply(p, x)))  # noqa: E731
        same(jax.grad(loss, (0, 1))(parameters, x, mine), jax.grad(loss, (0, 1))(parameters, x, stock), 1e-4)


def test_bad_input_names_the_argument():
    flax = tconv.flax.ConvTranspose(2, 3, (3, 3), rngs=nnx.Rngs(0))
    equinox = tconv.equinox.ConvTranspose2d(2, 3, 3, key=jax.random.key(0))
    haiku = hk.transform(lambda x: tconv.haiku.Conv2DTranspose(3, 3)(x))
    causal = tconv.flax.ConvTranspose(2, 3, (3,), padding="CAUSAL", rngs=nnx.Rngs(0))
    masked = tconv.flax.ConvTranspose(2, 3, (3,), mask=jnp.ones(3), rngs=nnx.Rngs(0))
    for call, argument in ((lambda: flax(jnp.ones((4, 2))), "inputs"), (lambda: flax(jnp.ones((1, 4, 4, 3), jnp.float32)), "x"),
                           (lambda: equinox(jnp.ones((1, 2, 4, 4))), "x"), (lambda: causal(jnp.ones((1, 4, 2))), "padding"),
                           (lambda: masked(jnp.ones((1, 4, 2))), "mask"),
                           (lambda: haiku.init(jax.random.key(0), jnp.ones((4, 2))), "inputs")):  # fmt: skip
        with pytest.raises(ArgumentError) as error:
            call()
        assert error.value.argument == argument
