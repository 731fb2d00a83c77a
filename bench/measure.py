# SPDX-License-Identifier: Apache-2.0
"""One layer: every peer prepares it, its error is taken, then rounds in which each peer in turn runs a few calls."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import judge, machine
from .layers import Layer
from .pool import Failed, Process
from .schedule import times, turns

Cell = dict[str, Any]

_PREPARE, _CALL = 180.0, 60.0  # seconds after which a library is said to hang
_WRONG = 1e-3  # an error beyond that of any float32 algorithm: another layer was computed


@contextmanager
def processes(names: list[str], threads: int) -> Iterator[tuple[dict[str, Process], dict[str, Cell]]]:
    """The running peers, and what each says of itself: version and note, or the reason why it is absent."""
    running = {name: Process(name, threads, machine.environment(threads) if name == "machine" else None) for name in names}
    try:
        for process in running.values():
            process.start()
        said = {name: _ask(process, 120, do="hello") for name, process in running.items()}
        for name in [name for name, answer in said.items() if "reason" in answer]:
            running.pop(name).stop()
        yield running, said
    finally:
        for process in running.values():
            process.stop()


def measure(layer: Layer, running: Mapping[str, Process], rounds: int, seconds: float) -> dict[str, Cell]:
    """A cell a peer: times and error, or the reason why there are none."""
    positions = judge.sample(layer.spec)
    true = judge.expected(layer.spec, *layer.arrays(), positions)
    cells = {name: _prepare(layer, process, positions, true) for name, process in running.items()}
    share = seconds / len(running)
    ready = {name: turns(cell.pop("estimate"), share, rounds) for name, cell in cells.items() if "reason" not in cell}
    samples: dict[str, list[float]] = {name: [] for name in ready}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(sorted(ready), len(ready)):
            turn = ready[name]
            if number not in turn.rounds:
                continue
            answer = _ask(running[name], _CALL + 20 * seconds, do="time", **turn.request(share / rounds))
            if "reason" in answer:
                cells[name] = answer
                del ready[name]
            else:
                samples[name] += answer["seconds"]
    for name in ready:
        cells[name] |= times(samples[name])._asdict()
    return cells


def _prepare(layer: Layer, process: Process, positions: Any, true: Any) -> Cell:
    made = _ask(process, _PREPARE, do="prepare", problem=str(layer.spec))
    if "reason" in made:
        return made
    sampled = _ask(process, _PREPARE, do="sample", positions=positions.tolist())
    if "reason" in sampled:
        return sampled
    if tuple(sampled["shape"]) != layer.spec.output_shape:
        return {"reason": f"gives the shape {tuple(sampled['shape'])}, not {layer.spec.output_shape}"}
    wrong = judge.error(np.array(sampled["values"]), true)
    if wrong.max > _WRONG:
        return {"reason": f"wrong: error {wrong.max:.1e}"}
    return {"estimate": made["seconds"], "error_max": wrong.max, "error_rms": wrong.rms}


def _ask(process: Process, limit: float, **request: Any) -> Cell:
    try:
        return process.ask(limit, **request)
    except Failed as failure:
        return {"reason": str(failure)}
