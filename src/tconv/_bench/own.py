# SPDX-License-Identifier: Apache-2.0
"""`tconv bench`: one layer of the user's beside whatever libraries are installed, and a sentence on whether tconv is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _runtime
from .._spec import ArgumentError, Spec
from . import gauge, machine
from .layer import Layer
from .measure import Cell, Setting, measure, peak, processes
from .peers import PEERS, is_ours, unknown
from .progress import Progress
from .roofline import Roofline, roofline

OURS = {"tconv_op": "tconv.Operator", "tconv": "tconv.conv_transpose"}  # always timed; the first is the one that is judged
JUDGED = "tconv_op"


class Report(NamedTuple):
    """What was measured of one layer, seconds throughout; `str()` is the table for people."""

    problem: str
    dtype: str
    threads: int
    machine: dict[str, Any]
    limits: dict[str, float]
    roofline: Roofline | None
    said: dict[str, Cell]
    cells: dict[str, Cell]
    absent: dict[str, str]

    def ratio(self, peer: str) -> float | None:
        """How many times longer than `Operator` a peer takes."""
        theirs = self.cells[peer].get("median")
        return theirs / self.cells[JUDGED]["median"] if theirs else None

    def share(self, peer: str) -> float | None:
        """The part of the roofline that a peer reaches."""
        time = self.cells[peer].get("median")
        return self.roofline.seconds / time if time and self.roofline else None

    def ranked(self) -> list[str]:
        """The names of all that were timed, the fastest first."""
        return sorted((name for name, cell in self.cells.items() if "median" in cell), key=lambda name: self.cells[name]["median"])

    def verdict(self) -> str:
        """One sentence: is tconv worth it for this layer?"""
        mine, share = self.cells[JUDGED], self.share(JUDGED)
        peer = next((name for name in self.ranked() if not is_ours(name)), None)
        if peer is None:
            return "No other library was timed" + (f": Operator reaches {share:.0%} of the roofline." if share else ".")
        theirs, ratio = self.cells[peer], self.cells[peer]["median"] / mine["median"]
        if mine["q1"] <= theirs["q3"] and theirs["q1"] <= mine["q3"]:
            return f"Operator and the best of the others, {peer}, are equally fast: their times overlap ({ratio:.2f}x)."
        if ratio > 1:
            return f"Operator is {ratio:.2f} times as fast as the best of the others, {peer}."
        return f"{peer} is faster here: Operator takes {1 / ratio:.2f} times as long."

    def facts(self) -> dict[str, Any]:
        """Everything, for programs."""
        peers = {
            name: {**self.said[name], "ratio": self.ratio(name), "share": self.share(name), **cell} for name, cell in self.cells.items()
        }
        return {"problem": self.problem, "dtype": self.dtype, "threads": self.threads, "machine": self.machine, "limits": self.limits,
                "roofline": self.roofline and self.roofline._asdict(), "peers": peers, "absent": self.absent,
                "verdict": self.verdict()}  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.problem}, {self.dtype}, {self.threads} thread{'s' * (self.threads > 1)} of {self.machine['cpu']}"]
        if self.roofline:
            limits = f"{self.limits[_rate(self.dtype)]:.0f} GFLOP/s, {self.limits['gbytes']:.1f} GB/s written"
            lines.append(f"roofline {_ms(self.roofline.seconds)} ms, limited by {self.roofline.bound} (this machine now: {limits})")
        heads = ["", "ms", "quartiles", "against Operator", "of the roofline", "error"]
        lines += ["", *_aligned([heads, *map(self._row, self.ranked())]), ""]
        lacking: dict[str, list[str]] = {}
        for name, reason in [*((name, cell["reason"]) for name, cell in self.cells.items() if "reason" in cell), *self.absent.items()]:
            lacking.setdefault(reason, []).append(name)
        lines += [f"not timed: {', '.join(names)} ({reason})" for reason, names in lacking.items()] + [""] * bool(lacking)
        return "\n".join([*lines, self.verdict()])

    def _row(self, name: str) -> list[str]:
        cell, ratio, share = self.cells[name], self.ratio(name), self.share(name)
        return [OURS.get(name, name), _ms(cell["median"]), f"{_ms(cell['q1'])}..{_ms(cell['q3'])}", f"{ratio:.2f}x" if ratio else "-",
                f"{share:.0%}" if share else "-", f"{cell['error_rms']:.1e}"]  # fmt: skip


def run(spec: Spec, others: Sequence[str], threads: int, setting: Setting, progress: Progress) -> Report:
    """Time a layer by us and by `others`, names of peers; one that is not installed is absent from the table, with the reason."""
    layer, names = Layer(str(spec), spec, "your own"), _names(others)
    progress.now("starting the libraries")
    with processes([*names, *gauge.GAUGES], threads) as (running, said):
        gauges = {name: running.pop(name) for name in gauge.GAUGES if name in running}
        measured = [peak(gauges, [setting.dtype])]
        cells = measure(layer, running, setting, progress.step)
        progress.step("the limits of the machine")
        measured.append(peak(gauges, [setting.dtype]))
    absent = {name: said[name]["reason"] for name in names if "reason" in said[name]}
    for name, label in OURS.items():
        if reason := absent.get(name) or cells[name].get("reason"):
            raise ChildProcessError(f"{label} could not be timed: {reason}")
    limits = gauge.best(measured)
    moved, rate = layer.elements * np.dtype(setting.dtype).itemsize, _rate(setting.dtype)
    least = roofline(spec.macs, moved, limits[rate], limits["gbytes"]) if limits else None
    return Report(layer.name, setting.dtype, threads, machine.facts(), limits, least, {name: said[name] for name in cells}, cells, absent)


def steps(others: Sequence[str], setting: Setting) -> int:
    """How many steps `run` takes at most."""
    return len(_names(others)) + setting.rounds + 1


def check(spec: Spec, others: Sequence[str], setting: Setting) -> None:
    """Refuse what cannot be timed before anything is started."""
    for name in unknown(list(others)):
        raise ArgumentError("peers", name, f"must be of {', '.join(PEERS)}")
    if setting.rounds < 1:
        raise ArgumentError("rounds", setting.rounds, "must be at least 1")
    if not 0 < setting.seconds < float("inf"):
        raise ArgumentError("seconds", setting.seconds, "must be above 0")
    copies, memory = len(_names(others)) + 1, _runtime._memory()
    needed = copies * Layer("", spec).elements * np.dtype(setting.dtype).itemsize
    if needed > memory:
        raise ArgumentError("problem", str(spec), f"needs {needed / 2**30:.1f} GiB in {copies} processes at once, more than this machine's "
                            f"memory of {memory / 2**30:.1f} GiB: name fewer peers or a smaller layer")  # fmt: skip


def _names(others: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*OURS, *others]))


def _rate(dtype: str) -> str:
    return "gflops" if dtype == "float32" else f"gflops_{dtype}"


def _ms(seconds: float) -> str:
    """Milliseconds with three or four digits that mean something.

    >>> [_ms(seconds) for seconds in (2.34567e-6, 0.012345, 1.5)]
    ['0.00235', '12.3', '1500']
    """
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Lines of columns, the first flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
            for row in rows]  # fmt: skip
