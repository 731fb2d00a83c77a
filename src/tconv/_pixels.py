# SPDX-License-Identifier: Apache-2.0
"""Pictures as arrays: which are taken, and how computed values become pixels again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ._runtime import Array, as_array
from ._spec import ArgumentError

_TYPES = ("uint8", "uint16", "int32", "float32", "float64")


def pixels_of(image: npt.ArrayLike) -> Array:
    """A picture as an array, or what is wrong with it."""
    array: Array = as_array("image", image)
    if array.dtype.name not in _TYPES:
        raise ArgumentError("image", array.dtype.name, f"must hold one of {', '.join(_TYPES)}")
    if array.ndim not in (2, 3):
        raise ArgumentError("image", array.shape, "must have the axes (height, width) or (height, width, channels)")
    if not array.size:
        raise ArgumentError("image", array.shape, "must have at least one pixel and one channel")
    return array


def rounded(values: Array, dtype: npt.DTypeLike) -> Array:
    """To the picture's own type: halves upwards and clipped to its range where that is an integer. Overwrites `values`."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    values += 0.5
    np.floor(values, out=values)
    return np.clip(values, limits.min, limits.max, out=values).astype(dtype)
