# SPDX-License-Identifier: Apache-2.0
"""tconv in Equinox: `equinox.nn.ConvTranspose` computed by `tconv.jax`."""

from __future__ import annotations

from typing import Any

from equinox import nn

from ._spec import ArgumentError
from .conventions._jax import SPATIAL
from .jax import conv_transpose

__all__ = ["ConvTranspose", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class ConvTranspose(nn.ConvTranspose):
    """Transposed convolution with the arguments, parameters and results of `equinox.nn.ConvTranspose`.

    Shapes: x (in_channels, *I) -> (out_channels, *O), one sample, as everywhere in Equinox; `jax.vmap` takes a batch. `weight` is
    (out_channels, in_channels / groups, *kernel_size), its kernel reversed; `bias` is (out_channels, 1, ...). padding_mode="CIRCULAR"
    stays with Equinox's own operator.

    Raises `ArgumentError` (a ValueError), which names the argument, its value and the rule, when the layer is called.

    >>> import jax, jax.numpy as jnp, tconv.equinox
    >>> layer = tconv.equinox.ConvTranspose2d(3, 8, 4, stride=2, padding=1, key=jax.random.key(0))
    >>> layer(jnp.ones((3, 16, 16))).shape, jax.vmap(layer)(jnp.ones((5, 3, 16, 16))).shape
    ((8, 32, 32), (5, 8, 32, 32))
    """

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        rank = self.num_spatial_dims
        if x.ndim != rank + 1:
            raise ArgumentError("x", x.shape, f"must be one sample of {rank + 1} axes, (channels, *size)")
        if self.padding_mode == "CIRCULAR":
            return super().__call__(x, key=key)
        numbers = tuple(axes + SPATIAL[rank] for axes in ("NC", "OI", "NC"))
        return conv_transpose(x, self.weight, self.stride, self._crop(), self.dilation, numbers, use_consistent_padding=True,
                              bias=None if self.bias is None else self.bias.reshape(-1), groups=self.groups)  # fmt: skip

    def _crop(self) -> list[tuple[int, int]]:
        """(lo, hi) per axis: the padding less output_padding. SAME gives size * stride, but less than that where even nothing cropped is."""
        crop = []
        for i, (k, s, extra, d) in enumerate(zip(self.kernel_size, self.stride, self.output_padding, self.dilation, strict=True)):
            if isinstance(self.padding, str) and self.padding != "VALID":
                total = d * (k - 1) + 1 - s + extra
                lo = max(0, total + (self.padding == "SAME_LOWER")) // 2
                crop.append((lo, total - lo - (extra if total >= 0 else 0)))
            else:
                lo, hi = (0, 0) if self.padding == "VALID" else self.padding[i]
                crop.append((lo, hi - extra))
        return crop


class ConvTranspose1d(ConvTranspose, nn.ConvTranspose1d):
    """`ConvTranspose` of sounds, as `equinox.nn.ConvTranspose1d`."""


class ConvTranspose2d(ConvTranspose, nn.ConvTranspose2d):
    """`ConvTranspose` of pictures, as `equinox.nn.ConvTranspose2d`."""


class ConvTranspose3d(ConvTranspose, nn.ConvTranspose3d):
    """`ConvTranspose` of volumes, as `equinox.nn.ConvTranspose3d`."""
