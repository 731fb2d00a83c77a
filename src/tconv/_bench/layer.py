# SPDX-License-Identifier: Apache-2.0
"""A layer that is timed: its name, geometry and class, the arrays it runs on, and the bytes it must move."""

from __future__ import annotations

import zlib
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._runtime import fresh
from .._spec import Spec

Array = np.ndarray[Any, np.dtype[Any]]


class Layer(NamedTuple):
    """A geometry with a name and where it comes from."""

    name: str
    spec: Spec
    source: str = ""

    @property
    def elements(self) -> int:
        """What must move: input, weight and output once."""
        return sum(prod(s) for s in (self.spec.input_shape, self.spec.weight_shape, self.spec.output_shape))

    @property
    def bytes(self) -> int:
        """The same as bytes of float32."""
        return 4 * self.elements

    @property
    def kind(self) -> str:
        """The class of shape that a table groups by."""
        return classify(self.spec)

    def arrays(self, dtype: str = "float32") -> tuple[Array, Array]:
        """x (N, Cin, *I) and w (Cin, Cout / groups, *k), the same numbers in every process."""
        random = np.random.default_rng(zlib.crc32(str(self.spec).encode()))
        x, w = (random.standard_normal(shape, np.dtype(dtype).type) for shape in (self.spec.input_shape, self.spec.weight_shape))
        return placed(x), placed(w)


def placed(array: Array, dtype: Any = None) -> Array:
    """A dense copy that begins where the libraries' own arrays do, at a whole line of the caches; NumPy's begin anywhere."""
    copy = fresh(array.shape, array.dtype if dtype is None else np.dtype(dtype))
    copy[...] = array
    return copy


def classify(spec: Spec) -> str:
    """The first class of docs/design.md that a geometry belongs to; what limits a kernel differs between classes.

    >>> classify(Spec.parse("n16 c256:128 i8x8 k4 s2 p1")), classify(Spec.parse("c1026:1 i224 k1024 s256"))
    ('small maps', 'long kernels')
    """
    tests = (
        ("tiny", spec.macs < 1e5),
        ("depthwise, small groups", spec.groups > 1 and max(spec.in_channels, spec.out_channels) <= 4 * spec.groups),
        ("long kernels", spec.rank == 1 and spec.kernel_size[0] >= 64),
        ("few outputs", spec.out_channels <= 8 * spec.groups),
        ("small maps", spec.input_size[-1] < 16),
        ("non-overlapping", all(a.extent <= a.stride for a in spec.axes)),
    )
    return next((name for name, holds in tests if holds), "overlapping")
