# SPDX-License-Identifier: Apache-2.0
"""The whole run: for each number of threads start the peers, then one layer after the other into the file of results; then the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tconv._bench import gauge, machine
from tconv._bench.layer import Layer
from tconv._bench.measure import Cell, Running, Setting, measure, peak, processes
from tconv._bench.peers import is_ours
from tconv._bench.progress import Progress

from . import checkout, memory, mixed
from .store import Store
from .view import AVX2

PARTS = ("times", "memory", "mixed")
_PEAK_EVERY = 16  # layers between measurements of the machine, which take some seconds


class Plan(NamedTuple):
    """What to measure, and how layers are timed."""

    layers: list[Layer]
    peers: list[str]
    threads: list[int]
    setting: Setting
    parts: Sequence[str]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two times comparable."""
        return {"rounds": self.setting.rounds, "seconds_per_layer": self.setting.seconds}

    @property
    def total(self) -> int:
        """Steps of progress."""
        steps = {"times": len(self.layers) * len(self.threads), "memory": len(self.layers), "mixed": len(mixed.LAYERS)}
        return sum(steps[part] for part in self.parts)


def head(plan: Plan) -> dict[str, Any]:
    """What the file says before any result."""
    return {"commit": checkout.commit(), "machine": machine.facts(), "settings": plan.settings}


def run(plan: Plan, store: Store) -> None:
    """Measure what the store lacks."""
    with Progress(plan.total) as progress:
        if "times" in plan.parts:
            for threads in plan.threads:
                _run_threads(plan, threads, store, progress)
        if "memory" in plan.parts:
            memory.run(plan.layers, plan.threads, store, progress)
        if "mixed" in plan.parts:
            mixed.run(mixed.layers(), max(plan.threads), mixed.SETTING, store, progress)
        progress.line(f"results in {store.path}")


def _run_threads(plan: Plan, threads: int, store: Store, progress: Progress) -> None:
    present = [name for name in plan.peers if name not in store.data["absent"]]
    left = [layer for layer in plan.layers if not store.done(layer, threads, present)]
    for layer in plan.layers:
        if layer not in left:
            progress.done(f"{layer.name}, {threads} threads: there already")
    if not left:
        return
    progress.now(f"starting {len(plan.peers)} peers with {threads} threads")
    wanted = [*gauge.GAUGES, *(gauge.AVX2_GAUGES if AVX2 in plan.peers else ())]
    with processes([*plan.peers, *wanted], threads) as (running, said):
        store.say({name: said[name] for name in plan.peers})
        for name, answer in said.items():
            if "reason" in answer:
                progress.line(f"{name} is absent: {answer['reason']}")
        gauges = {name: running.pop(name) for name in wanted if name in running}
        if not running:
            raise SystemExit("bench: no peer is left to time")
        for number, layer in enumerate(left):
            if number % _PEAK_EVERY == 0:
                _gauge(gauges, threads, store, progress)
            progress.now(f"{layer.name}, {threads} threads")
            start, load = time.monotonic(), machine.load()
            cells = measure(layer, running, plan.setting)
            store.add(layer, threads, load, cells)
            progress.done(f"{threads}t {layer.name:28} {summary(cells)} ({time.monotonic() - start:.0f} s)")
        _gauge(gauges, threads, store, progress)
        store.save()


def _gauge(gauges: Running, threads: int, store: Store, progress: Progress) -> None:
    progress.now(f"the machine's limits, {threads} threads")
    store.peak(threads, peak(gauges, ["float32", "float64"]))


def summary(cells: dict[str, Cell]) -> str:
    """One line for the eye: every time in ms, and how many times slower than our first the best of the others is.

    >>> summary({"tconv_op": {"median": 0.001}, "torch": {"median": 0.003}, "litert": {"reason": "no groups"}})
    'tconv_op 1.00  torch 3.00  litert -  | best peer 3.00x'
    """
    shown = "  ".join(f"{name} {cell['median'] * 1e3:.3g}" if "median" in cell and cell["median"] < 1e-4 else
                      f"{name} {cell['median'] * 1e3:.2f}" if "median" in cell else f"{name} -" for name, cell in cells.items())  # fmt: skip
    ours = [cell["median"] for name, cell in cells.items() if is_ours(name) and "median" in cell]
    theirs = [cell["median"] for name, cell in cells.items() if not is_ours(name) and "median" in cell]
    return shown + (f"  | best peer {min(theirs) / ours[0]:.2f}x" if ours and theirs else "")
