# SPDX-License-Identifier: Apache-2.0
"""tconv in Haiku: `haiku.ConvNDTranspose` computed by `tconv.jax`."""

from __future__ import annotations

from math import prod
from typing import Any

import haiku as hk
from jax import numpy as jnp

from ._spec import ArgumentError
from .jax import conv_transpose

__all__ = ["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "ConvNDTranspose"]


class ConvNDTranspose(hk.ConvNDTranspose):
    """Transposed convolution with the arguments, parameters and results of `haiku.ConvNDTranspose`.

    Shapes: inputs (N, *I, Cin) -> (N, *O, output_channels), or channels first as `data_format` says; N may be absent. The parameters
    are Haiku's: `w` (*kernel_shape, output_channels, Cin), its kernel reversed, and `b`.

    Raises `ArgumentError` (a ValueError), which names the argument, its value and the rule, when the layer is called.

    >>> import haiku as hk, jax, jax.numpy as jnp, tconv.haiku
    >>> model = hk.transform(lambda x: tconv.haiku.Conv2DTranspose(8, 4, stride=2)(x))
    >>> parameters = model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    >>> model.apply(parameters, None, jnp.ones((1, 16, 16, 3))).shape
    (1, 32, 32, 8)
    """

    def __call__(self, inputs: Any, *, precision: Any = None) -> Any:
        inputs, rank = jnp.asarray(inputs), self.num_spatial_dims
        if inputs.ndim not in (rank + 1, rank + 2):
            raise ArgumentError("inputs", inputs.shape, f"must have {rank + 2} axes, or {rank + 1} without the batch")
        channels = inputs.shape[-1 if self.channel_index == -1 else -1 - rank]
        shape = (*self.kernel_shape, self.output_channels, channels)
        usual = hk.initializers.TruncatedNormal(stddev=prod((*self.kernel_shape, channels)) ** -0.5)
        w = hk.get_parameter("w", shape, inputs.dtype, init=self.w_init or usual)
        if self.mask is not None:
            if self.mask.shape != shape:
                raise ArgumentError("mask", self.mask.shape, f"must have the shape of w, {shape}")
            w = w * self.mask
        b = None
        if self.with_bias:
            flat = () if self.channel_index == -1 else (1,) * rank
            b = hk.get_parameter("b", (self.output_channels, *flat), inputs.dtype, init=self.b_init).reshape(-1)
        return conv_transpose(inputs, w, self.stride, self.padding, dimension_numbers=self.dimension_numbers, precision=precision, bias=b,
                              output_size=self.output_shape)  # fmt: skip


class Conv1DTranspose(ConvNDTranspose, hk.Conv1DTranspose):
    """`ConvNDTranspose` of sounds, as `haiku.Conv1DTranspose`."""


class Conv2DTranspose(ConvNDTranspose, hk.Conv2DTranspose):
    """`ConvNDTranspose` of pictures, as `haiku.Conv2DTranspose`."""


class Conv3DTranspose(ConvNDTranspose, hk.Conv3DTranspose):
    """`ConvNDTranspose` of volumes, as `haiku.Conv3DTranspose`."""
