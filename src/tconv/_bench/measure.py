# SPDX-License-Identifier: Apache-2.0
"""One layer: every peer prepares it, its error is taken, then rounds in which each peer in turn runs a few calls."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from . import gauge, judge
from .layer import Layer
from .pool import WORKER, Failed, Process
from .schedule import Turns, times, turns

Cell = dict[str, Any]
Running = Mapping[str, Process]

_PREPARE, _CALL, _PEAK = 180.0, 60.0, 120.0  # seconds after which a library is said to hang
WRONG = {"float32": 1e-3, "float64": 1e-10}  # an error beyond that of any algorithm in this dtype: another layer, or fewer digits


class Setting(NamedTuple):
    """How a layer is timed: rounds, seconds for the rounds of all peers together, what the numbers are, and whether errors are taken."""

    rounds: int
    seconds: float
    dtype: str = "float32"
    judged: bool = True


@contextmanager
def processes(names: Sequence[str], threads: int, module: str = WORKER) -> Iterator[tuple[dict[str, Process], dict[str, Cell]]]:
    """The running peers, and what each says of itself: version and note, or the reason why it is absent."""
    running = {name: Process(name, threads, module) for name in names}
    every = list(running.values())  # whoever gets the dict may take some out of it
    try:
        for process in running.values():
            process.start()
        said = {name: _reason_or(process.hello) for name, process in running.items()}
        for name in [name for name, answer in said.items() if "reason" in answer]:
            running.pop(name).stop()
        yield running, said
    finally:
        for process in every:
            process.stop()


def measure(layer: Layer, running: Running, setting: Setting, tell: Callable[[str], None] = lambda text: None) -> dict[str, Cell]:
    """A cell a peer: times and error, or the reason why there are none; `tell` hears what begins."""
    positions = judge.sample(layer.spec)
    true = judge.expected(layer.spec, *layer.arrays(setting.dtype), positions) if setting.judged else None
    cells: dict[str, Cell] = {}
    for name, process in running.items():
        tell(f"preparing {name}")
        cells[name] = _prepare(layer, process, setting)
        if true is not None and "reason" not in cells[name]:
            cells[name] |= _judge(layer, process, setting.dtype, positions, true)
    share = setting.seconds / max(1, len(running))
    estimates = {name: cell.pop("estimate", 0.0) for name, cell in cells.items()}
    ready = {name: turns(estimates[name], share, setting.rounds) for name, cell in cells.items() if "reason" not in cell}
    for name, found in _rounds(running, ready, setting, share, tell).items():
        cells[name] = found if "reason" in found else {**cells[name], **found}
    return cells


def _rounds(running: Running, ready: dict[str, Turns], setting: Setting, share: float, tell: Callable[[str], None]) -> dict[str, Cell]:
    """The times of every peer that is ready, or the reason why it came no further."""
    samples: dict[str, list[float]] = {name: [] for name in ready}
    failed: dict[str, Cell] = {}
    order = random.Random(0)
    for number in range(setting.rounds):
        tell(f"round {number + 1} of {setting.rounds}")
        for name in order.sample(sorted(ready), len(ready)):
            if number not in ready[name].rounds or name in failed:
                continue
            answer = _ask(running[name], _CALL + 20 * setting.seconds, do="time", **ready[name].request(share / setting.rounds))
            if "reason" in answer:
                failed[name] = answer
            else:
                samples[name] += answer["seconds"]
    return {name: failed.get(name) or dict(times(samples[name])._asdict()) for name in ready}


def peak(gauges: Running, dtypes: Sequence[str]) -> gauge.Rates:
    """The machine's best rates of this moment, by whichever gauge reaches them; one that fails measures nothing."""
    answers = [_ask(process, _PEAK, do="peak", dtypes=list(dtypes)) for process in gauges.values()]
    return gauge.best(answer for answer in answers if "reason" not in answer)


def _prepare(layer: Layer, process: Process, setting: Setting) -> Cell:
    made = _ask(process, _PREPARE, do="prepare", problem=str(layer.spec), dtype=setting.dtype)
    return made if "reason" in made else {"estimate": made["seconds"]}


def _judge(layer: Layer, process: Process, dtype: str, positions: Any, true: Any) -> Cell:
    sampled = _ask(process, _PREPARE, do="sample", positions=positions.tolist())
    if "reason" in sampled:
        return sampled
    if tuple(sampled["shape"]) != layer.spec.output_shape:
        return {"reason": f"gives the shape {tuple(sampled['shape'])}, not {layer.spec.output_shape}"}
    wrong = judge.error(np.array(sampled["values"]), true)
    if wrong.max > WRONG[dtype]:
        return {"reason": f"error {wrong.max:.1e}, too large for {dtype}"}
    return {"error_max": wrong.max, "error_rms": wrong.rms}


def _ask(process: Process, limit: float, **request: Any) -> Cell:
    return _reason_or(lambda: process.ask(limit, **request))


def _reason_or(question: Callable[[], Cell]) -> Cell:
    try:
        return question()
    except Failed as failure:
        return {"reason": str(failure)}
