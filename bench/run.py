# SPDX-License-Identifier: Apache-2.0
"""The whole run: for each number of threads start the peers, then one layer after the other into the file of results."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from . import machine
from .layers import Layer
from .measure import Cell, measure, processes
from .peers import is_ours
from .pool import ROOT, Process
from .progress import Progress
from .store import Store

_PEAK_EVERY = 8  # layers between measurements of the machine


class Plan(NamedTuple):
    """What to time and for how long."""

    layers: list[Layer]
    peers: list[str]
    threads: list[int]
    rounds: int
    seconds: float

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two times comparable."""
        return {"rounds": self.rounds, "seconds_per_layer": self.seconds}


def head(plan: Plan) -> dict[str, Any]:
    """What the file says before any result."""
    return {"commit": machine.commit(ROOT), "machine": machine.facts(), "settings": plan.settings}


def run(plan: Plan, store: Store) -> None:
    """Measure what the store lacks."""
    with Progress(len(plan.layers) * len(plan.threads)) as progress:
        for threads in plan.threads:
            _run_threads(plan, threads, store, progress)
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
    with processes([*plan.peers, "machine"], threads) as (running, said):
        store.say(said)
        for name, answer in said.items():
            if "reason" in answer:
                progress.line(f"{name} is absent: {answer['reason']}")
        gauge = running.pop("machine")
        if not running:
            raise SystemExit("bench: no peer is left to time")
        for number, layer in enumerate(left):
            if number % _PEAK_EVERY == 0:
                _gauge(gauge, threads, store)
            progress.now(f"{layer.name}, {threads} threads")
            start, load = time.monotonic(), machine.load()
            cells = measure(layer, running, plan.rounds, plan.seconds)
            store.add(layer, threads, load, cells)
            progress.done(f"{threads}t {layer.name:28} {summary(cells)} ({time.monotonic() - start:.0f} s)")
        _gauge(gauge, threads, store)
        store.save()


def _gauge(gauge: Process, threads: int, store: Store) -> None:
    store.peak(threads, gauge.ask(120, do="peak"))


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
