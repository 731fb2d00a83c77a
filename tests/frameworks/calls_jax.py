# SPDX-License-Identifier: Apache-2.0
"""Libraries of layers on JAX, as tests call them: many layers traced into one program, since XLA takes 30 ms to compile one alone."""

from __future__ import annotations

from functools import partial

import numpy as np

TOGETHER = 50


def jax(x, w, **words):
    import jax

    return jax.lax.conv_transpose(x, w, **words)


def flax_linen(x, w, **words):
    import flax.linen

    features = w.shape[-2 if words.get("transpose_kernel") else -1]
    return flax.linen.ConvTranspose(features, use_bias=False, **words).apply({"params": {"kernel": w}}, x)


def flax_nnx(x, w, **words):
    from flax import nnx

    features = w.shape[-2:][:: -1 if words.get("transpose_kernel") else 1]
    return nnx.ConvTranspose(*features, use_bias=False, kernel_init=lambda *_: w, rngs=nnx.Rngs(0), **words)(x)


def haiku(x, w, **words):
    import haiku

    layer = haiku.transform(lambda x: haiku.ConvNDTranspose(x.ndim - 2, w.shape[-2], with_bias=False, **words)(x))
    return layer.apply({"conv_nd_transpose": {"w": w}}, None, x)


def equinox(x, w, groups=1, **words):
    import equinox
    import jax

    x, w = x.astype("float32"), w.astype("float32")  # XLA of JAX 0.10 ends the process on some grouped layers in float64
    shape = (x.ndim - 2, w.shape[1] * groups, w.shape[0])
    kind = partial(equinox.nn.ConvTranspose, *shape, groups=groups, use_bias=False, **words)
    layer = equinox.filter_eval_shape(kind, key=jax.random.key(0))  # no random weight, which XLA would compile
    return jax.vmap(equinox.tree_at(lambda layer: layer.weight, layer, w))(x)


def together(call, cases):
    """The result of every call, or the text of what it raised while it was traced."""
    import jax

    results = []
    for start in range(0, len(cases), TOGETHER):
        chunk = cases[start : start + TOGETHER]
        refusals = {}

        def layers(arrays, chunk=chunk, refusals=refusals):
            found = []
            for number, ((x, w), (_, _, words)) in enumerate(zip(arrays, chunk, strict=True)):
                try:
                    found.append(call(x, w, **words))
                except ImportError:
                    raise
                except Exception as error:
                    refusals[number] = f"{type(error).__name__}: {str(error)[:300]}"
                    found.append(0.0)
            return found

        computed = jax.jit(layers)([(x, w) for x, w, _ in chunk])
        results += [refusals.get(number, np.asarray(y)) for number, y in enumerate(computed)]
    return results
