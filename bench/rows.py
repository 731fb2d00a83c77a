# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the tables: roofline and ratios of the units in a file of results."""

from __future__ import annotations

from typing import Any, NamedTuple

from tconv import Spec
from tconv._bench import gauge
from tconv._bench.peers import is_ours
from tconv._bench.roofline import Roofline, roofline

FIRST, LAST = "tconv_op", "tconv_op:layout=channels_last"
EITHER = "tconv_op in the faster layout"  # no peer: what a layer takes in the better of the two, as peers of either layout are compared


class Row(NamedTuple):
    """One layer at one number of threads; seconds throughout. `limits` are the machine's rates, by name."""

    layer: str
    problem: str
    kind: str
    macs: int
    bytes: int
    limits: dict[str, float]
    cells: dict[str, dict[str, Any]]

    def time(self, peer: str) -> float | None:
        """The median of a peer, None where it has none; of EITHER the lesser of both layouts."""
        if peer == EITHER:
            return min((time for name in (FIRST, LAST) if (time := self.time(name))), default=None)
        return self.cells.get(peer, {}).get("median")

    def ratio(self, peer: str, ours: str) -> float | None:
        """How many times longer than ours a peer takes."""
        theirs, mine = self.time(peer), self.time(ours)
        return theirs / mine if theirs and mine else None

    def best(self) -> str | None:
        """The fastest peer that is not ours."""
        timed = {name: time for name in self.cells if not is_ours(name) and (time := self.time(name))}
        return min(timed, key=timed.__getitem__, default=None)

    def against_best(self, ours: str) -> float | None:
        """How many times longer than ours the fastest peer takes."""
        peer = self.best()
        return self.ratio(peer, ours) if peer else None

    def roofline(self, rate: str = "gflops", itemsize: int = 4) -> Roofline | None:
        """The least time, by the rate of that name; None where the run did not measure it."""
        gflops = self.limits.get(rate)
        return roofline(self.macs, self.bytes * itemsize // 4, gflops, self.limits["gbytes"]) if gflops else None

    def share(self, ours: str, rate: str = "gflops", itemsize: int = 4) -> float | None:
        """The part of the roofline that we reach, 1 being all of it; above 1 where caches beat memory or an algorithm multiplies less."""
        mine, least = self.time(ours), self.roofline(rate, itemsize)
        return least.seconds / mine if mine and least else None

    def worst_error(self) -> float:
        """The largest root mean square error of the peers that are not ours."""
        return max((cell["error_rms"] for name, cell in self.cells.items() if not is_ours(name) and "error_rms" in cell), default=0.0)

    def is_worse(self, ours: str) -> bool | None:
        """Whether our error is above that of every peer; None where there is nothing to compare."""
        mine = self.cells.get(ours, {}).get("error_rms")
        return None if mine is None or not self.best() else mine > self.worst_error()

    def is_heavy(self) -> bool:
        """Whether arithmetic is worth its full rate here: at least 0.2 GFLOP, and 32 channels in and out of each group."""
        spec = Spec.parse(self.problem)
        return 2 * self.macs >= 2e8 and min(spec.in_channels, spec.out_channels) >= 32 * spec.groups


def rows(data: dict[str, Any], threads: int) -> list[Row]:
    """The units of one number of threads in the order of the file."""
    limits = rates(data, threads)
    return [Row(u["layer"], u["problem"], u["kind"], u["macs"], u["bytes"], limits, u["cells"])
            for u in data["units"] if u["threads"] == threads]  # fmt: skip


def rates(data: dict[str, Any], threads: int) -> dict[str, float]:
    """The best that the machine did in this run."""
    measured = [{name: rate for name, rate in peak.items() if name != "threads"} for peak in data["peaks"] if peak["threads"] == threads]
    if not measured:
        raise SystemExit(f"bench: the results hold nothing with {threads} threads, only {thread_counts(data)}")
    return gauge.best(measured)


def thread_counts(data: dict[str, Any]) -> list[int]:
    """The numbers of threads in a file."""
    return sorted({unit["threads"] for unit in data["units"]})


def peer_names(data: dict[str, Any]) -> list[str]:
    """All peers in a file, ours first."""
    names = dict.fromkeys(name for unit in data["units"] for name in unit["cells"])
    return sorted(names, key=lambda name: not is_ours(name))
