# SPDX-License-Identifier: Apache-2.0
"""What every section of the tables is made from, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tconv._bench.peers import is_ours

from .rows import FIRST, Row, peer_names, rows

OURS = FIRST
DOUBLE, AVX2 = "tconv_op:dtype=float64", "tconv_op:algorithm=direct_avx2"  # variants of ours with a section of their own


class View(NamedTuple):
    """What a table shows: the data, the number of threads, and which of ours the others are compared with."""

    data: dict[str, Any]
    threads: int
    ours: str

    @property
    def rows(self) -> list[Row]:
        return rows(self.data, self.threads)

    @property
    def others(self) -> list[str]:
        return [name for name in peer_names(self.data) if not is_ours(name)]

    @property
    def mine(self) -> list[str]:
        return [name for name in peer_names(self.data) if is_ours(name) and name not in (DOUBLE, AVX2)]


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def ms(seconds: float | None) -> str:
    """Milliseconds, with digits that mean something."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.{4 if seconds < 1e-4 else 3 if seconds < 1e-3 else 2 if seconds < 0.1 else 0}f}"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def mib(count: float | None) -> str:
    return "-" if count is None else f"{max(count, 0) / 2**20:.1f}"
