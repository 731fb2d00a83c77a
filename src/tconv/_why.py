# SPDX-License-Identifier: Apache-2.0
"""Why a layer is computed as it is: the methods that were considered, their estimates, and the limit of multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _problem
from ._functional import Prepared, prepare
from ._runtime import kernel_for, thread_count
from ._spec import Spec


@dataclass(frozen=True)
class Candidate:
    """A method: its estimated cycles on one thread, with the part of them that multiply-adds take at best, or why it was refused."""

    method: str
    cycles: float | None
    of_limit: float | None
    refused: str

    def __str__(self) -> str:
        if self.cycles is None:
            return f"refused: {self.refused}"
        return f"{self.cycles:,.0f} cycles of one thread, {self.of_limit:.0%} of the multiply-add limit (estimates)"


@dataclass(frozen=True)
class Why:
    """What was chosen for a forward layer, and from what."""

    spec: Spec
    dtype: str
    layout: str
    threads_allowed: int
    threads: int
    kernel: str
    lanes: int
    limit: float  # cycles of one core that does two vectors of multiply-adds in each, one where vectors are halved, 16 on a matrix unit
    workspace_bytes: int
    weight_bytes: int  # packed; an Operator keeps them
    candidates: tuple[Candidate, ...]

    def facts(self) -> dict[str, Any]:
        """For programs: plain numbers and strings."""
        return {
            "problem": str(self.spec), "dtype": self.dtype, "layout": self.layout, "threads_allowed": self.threads_allowed,
            "threads": self.threads, "kernel": self.kernel, "macs": self.spec.macs, "lanes": self.lanes, "limit_cycles": self.limit,
            "workspace_bytes": self.workspace_bytes, "weight_bytes": self.weight_bytes, "candidates": [vars(c) for c in self.candidates],
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _vectors(self) -> str:
        count = self.spec.macs / (self.lanes * self.limit) if self.limit else 2
        return {2: "two vectors", 1: "one vector", 0.5: "half a vector"}.get(count, f"{count:g} vectors")

    def _lines(self) -> Iterator[str]:
        yield f"{self.spec}, {self.dtype}, {self.layout}"
        rows = {
            "kernel": self.kernel, "threads": f"{self.threads} of {self.threads_allowed} allowed",
            "workspace": f"{self.workspace_bytes / 1024:,.0f} KiB a thread", "weight": f"{self.weight_bytes / 1024:,.0f} KiB packed",
            "multiply-adds": f"{self.spec.macs:,}; {self._vectors()} of {self.lanes} a cycle make the limit, {self.limit:,.0f} cycles of one core",
            **{c.method: str(c) for c in self.candidates},
        }  # fmt: skip
        width = max(map(len, rows)) + 2
        yield from (f"{name:<{width}}{value}" for name, value in rows.items())


def explain(spec: Spec, dtype: str = "float32", layout: str = "channels_first", threads: int | None = None, algorithm: str = "auto", *,
            kept: bool = True) -> Why:  # fmt: skip
    """The choice for one forward layer, made as `Operator` makes it, or where the packed weight is not `kept`, as `conv_transpose` does."""
    _problem.check_layout(layout)
    allowed = thread_count(threads)
    computed = np.dtype(np.float64 if dtype == "float64" else np.float32)
    problem = _problem.Problem(spec, layout, True)
    return why(prepare(problem, True, dtype, kernel_for(algorithm), allowed, pack_always=not kept), computed, dtype, allowed)


def why(prepared: Prepared, computed: np.dtype[Any], dtype: str, allowed: int) -> Why:
    """The choice that was made for a prepared layer."""
    spec, layout, core = prepared.problem.spec, prepared.problem.layout, prepared.stencil
    limit = core.multiply * spec.macs / (2 * core.lanes)
    candidates = tuple(Candidate(method, cycles, limit / max(cycles, 1.0) if cycles is not None else None, refused)
                       for method, cycles, refused in core.candidates)  # fmt: skip
    return Why(spec, dtype, layout, allowed, core.threads, core.kernel, core.lanes, limit, core.workspace_bytes,
               core.weight_elements * computed.itemsize, candidates)  # fmt: skip
