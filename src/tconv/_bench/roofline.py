# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of ratios: the least time a machine needs for a layer, and means of ratios."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log
from typing import NamedTuple


class Roofline(NamedTuple):
    """The least seconds a layer can take on a machine, and what takes them: "multiply-adds" or "bytes"."""

    seconds: float
    bound: str


def roofline(macs: int, moved: int, gflops: float, gbytes: float) -> Roofline:
    """From useful multiply-adds and bytes that must move, and the machine's rates.

    >>> roofline(10**9, 10**6, gflops=100.0, gbytes=10.0)
    Roofline(seconds=0.02, bound='multiply-adds')
    """
    return max(Roofline(2 * macs / gflops / 1e9, "multiply-adds"), Roofline(moved / gbytes / 1e9, "bytes"))


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not None.

    >>> geometric_mean([2.0, 8.0, None])
    4.0
    """
    logs = [log(value) for value in values if value]
    return exp(sum(logs) / len(logs)) if logs else None
