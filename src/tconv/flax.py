# SPDX-License-Identifier: Apache-2.0
"""tconv in Flax: `nnx.ConvTranspose` computed by `tconv.jax`."""

from __future__ import annotations

from math import prod
from typing import Any

from flax import nnx

from ._spec import ArgumentError, pairs
from .jax import conv_transpose

__all__ = ["ConvTranspose"]


class ConvTranspose(nnx.ConvTranspose):
    """Transposed convolution with the arguments, parameters and results of `flax.nnx.ConvTranspose`.

    Shapes: x (*batch, *I, in_features) -> (*batch, *O, out_features), with any number of batch axes. `kernel` is
    (*kernel_size, in_features, out_features), or (*kernel_size, out_features, in_features) with `transpose_kernel`; `bias` is
    (out_features,). Their names are Flax's, so its checkpoints are read as they are. padding="CIRCULAR" stays with Flax's own operator.

    Raises `ArgumentError` (a ValueError), which names the argument, its value and the rule, when the layer is called.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import tconv.flax
    >>> layer = tconv.flax.ConvTranspose(3, 8, (4, 4), strides=(2, 2), rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 16, 16, 3))).shape
    (1, 32, 32, 8)
    """

    def __call__(self, inputs: Any) -> Any:
        if self.padding == "CIRCULAR":
            return super().__call__(inputs)
        rank = len(self.kernel_size)
        if inputs.ndim <= rank:
            raise ArgumentError("inputs", inputs.shape, f"must have the axes (*batch, *size, features) with {rank} of size")
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if self.mask is not None:
            if self.mask.shape != kernel.shape:
                raise ArgumentError("mask", self.mask.shape, f"must have the shape of the kernel, {kernel.shape}")
            kernel = kernel * self.mask
        batch, rest = inputs.shape[: -rank - 1], inputs.shape[-rank - 1 :]
        x, kernel, bias = self.promote_dtype((inputs.reshape(prod(batch), *rest), kernel, bias), dtype=self.dtype)
        padding = self.padding if isinstance(self.padding, str) else pairs("padding", self.padding, rank)
        y = conv_transpose(x, kernel, self.strides or 1, padding, self.kernel_dilation, transpose_kernel=self.transpose_kernel,
                           precision=self.precision, preferred_element_type=self.preferred_element_type, bias=bias)  # fmt: skip
        return y.reshape(*batch, *y.shape[1:])
