# SPDX-License-Identifier: Apache-2.0
"""Calls of one process, timed in turns, so that drift of the machine falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

SECONDS = 10  # for the turns of one set of calls


def medians(rounds: int, *calls: Callable[[], Any], seconds: float = SECONDS, settle: bool = False) -> tuple[float, ...]:
    """Medians in milliseconds of calls that take turns, of three turns at least and then until the seconds are spent.

    With `settle` each turn begins with a call that is not timed: a library's threads may spin for a while after the one before.
    """
    taken: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 3 and time.perf_counter() - began > seconds:
            break
        for call, times in zip(calls, taken, strict=True):
            if settle:
                call()
            start = time.perf_counter()
            call()
            if turn:  # the first warms up
                times.append(1e3 * (time.perf_counter() - start))
    return tuple(map(statistics.median, taken))
