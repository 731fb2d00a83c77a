# SPDX-License-Identifier: Apache-2.0
"""How many calls a peer makes in which rounds, and what its times say: arithmetic only."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Any, NamedTuple

_BLOCK = 2e-4  # seconds below which calls are timed in blocks: the clock itself takes 1e-7
_WARM = 2e-3  # seconds of calls that are not recorded at the start of a turn: caches are cold
_SLOW = 1.0  # seconds a call beyond which one call must do
_COUNT = 1000  # calls of one turn


class Turns(NamedTuple):
    """One peer's share of a layer: in every one of `rounds`, `warm` calls unrecorded, then `repeat` times `inner` calls."""

    rounds: frozenset[int]
    warm: int
    inner: int
    repeat: int

    def request(self, share: float) -> dict[str, Any]:
        """The numbers of a turn as a worker takes them; an estimate that was too low ends at twice the round's share."""
        return {"warm": self.warm, "inner": self.inner, "count": self.repeat, "within": 2 * share}


class Times(NamedTuple):
    """Seconds a call: quartiles and the least of all samples."""

    median: float
    q1: float
    q3: float
    min: float
    samples: int


def turns(estimate: float, budget: float, rounds: int) -> Turns:
    """The share of a peer that takes `estimate` seconds a call and may take `budget` seconds for this layer.

    A call longer than a round's share is made in fewer rounds, at least 3, spread over all; one of seconds, once.
    """
    estimate = max(estimate, 1e-7)
    share = budget / rounds
    inner = max(1, round(_BLOCK / estimate))
    if estimate <= share:
        count = max(1, min(_COUNT, int(share / (inner * estimate))))
        return Turns(frozenset(range(rounds)), max(1, min(1000, int(_WARM / estimate))), inner, count)
    visits = 1 if estimate > _SLOW else min(rounds, max(3, int(budget / estimate)))
    return Turns(frozenset(i * rounds // visits for i in range(visits)), 0, 1, 1)


def times(samples: list[float]) -> Times:
    """Quartiles of the samples; of a single one, itself."""
    q1, _, q3 = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return Times(median(samples), q1, q3, min(samples), len(samples))
