# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the tables: roofline, ratios and geometric means of the units in a file of results."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log
from typing import Any, NamedTuple

from .peers import is_ours


class Row(NamedTuple):
    """One layer at one number of threads; seconds throughout."""

    layer: str
    problem: str
    kind: str
    macs: int
    roofline: float
    bound: str
    cells: dict[str, dict[str, Any]]

    def time(self, peer: str) -> float | None:
        """The median of a peer, None where it has none."""
        return self.cells.get(peer, {}).get("median")

    def ratio(self, peer: str, ours: str) -> float | None:
        """How many times longer than ours a peer takes."""
        theirs, mine = self.time(peer), self.time(ours)
        return theirs / mine if theirs and mine else None

    def best(self) -> str | None:
        """The fastest peer that is not ours."""
        timed = {name: time for name in self.cells if not is_ours(name) and (time := self.time(name))}
        return min(timed, key=timed.__getitem__, default=None)

    def share(self, ours: str) -> float | None:
        """The part of the roofline that we reach, 1 being all of it; above 1 where caches beat memory or an algorithm multiplies less."""
        mine = self.time(ours)
        return self.roofline / mine if mine else None

    def worst_error(self) -> float:
        """The largest root mean square error of the peers that are not ours."""
        return max((cell["error_rms"] for name, cell in self.cells.items() if not is_ours(name) and "error_rms" in cell), default=0.0)


def rows(data: dict[str, Any], threads: int) -> list[Row]:
    """The units of one number of threads in the order of the file."""
    flops, width = rates(data, threads)
    found = []
    for unit in data["units"]:
        if unit["threads"] == threads:
            seconds, bound = max((2 * unit["macs"] / flops, "multiply-adds"), (unit["bytes"] / width, "bytes"))
            found.append(Row(unit["layer"], unit["problem"], unit["kind"], unit["macs"], seconds, bound, unit["cells"]))
    return found


def rates(data: dict[str, Any], threads: int) -> tuple[float, float]:
    """Operations and bytes a second: the best that the machine did in this run."""
    measured = [peak for peak in data["peaks"] if peak["threads"] == threads]
    if not measured:
        raise SystemExit(f"bench: the results hold nothing with {threads} threads, only {thread_counts(data)}")
    return max(p["gflops"] for p in measured) * 1e9, max(p["gbytes"] for p in measured) * 1e9


def thread_counts(data: dict[str, Any]) -> list[int]:
    """The numbers of threads in a file."""
    return sorted({unit["threads"] for unit in data["units"]})


def peer_names(data: dict[str, Any]) -> list[str]:
    """All peers in a file, ours first."""
    names = dict.fromkeys(name for unit in data["units"] for name in unit["cells"])
    return sorted(names, key=lambda name: not is_ours(name))


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not None.

    >>> geometric_mean([2.0, 8.0, None])
    4.0
    """
    logs = [log(value) for value in values if value]
    return exp(sum(logs) / len(logs)) if logs else None
