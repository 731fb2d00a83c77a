# SPDX-License-Identifier: Apache-2.0
"""What the peers share: the order of the axes, and 1-D as 2-D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._spec import Axis, Spec
from .layer import Array

Run = Callable[[], Any]


def channels_last(rank: int) -> tuple[int, ...]:
    """The transpose from (N, C, *S) to (N, *S, C)."""
    return (0, *range(2, rank + 2), 1)


def first(y: Any, squeeze: bool = False) -> Array:
    """(N, *S, C) to (N, C, *S); `squeeze` drops the height of 1 that `to_2d` gave."""
    moved: Array = np.moveaxis(np.asarray(y), -1, 1)
    return moved[:, :, 0] if squeeze else moved


def to_2d(spec: Spec, x: Array, w: Array) -> tuple[tuple[Axis, ...], Array, Array]:
    """A 1-D problem as a 2-D one of height 1, for libraries whose 1-D layer is that or does not exist."""
    if spec.rank > 1:
        return spec.axes, x, w
    return (Axis(1, 1), *spec.axes), x[:, :, None], w[:, :, None]
