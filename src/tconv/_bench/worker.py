# SPDX-License-Identifier: Apache-2.0
"""The child process that holds one library: requests and answers are JSON lines on stdin and stdout.

    {"do": "hello"}                                     -> version, note
    {"do": "prepare", "problem": LINE, "dtype": NAME}   -> seconds of one call, or reason
    {"do": "sample", "positions": [...]}                -> shape of the output, and its values there if the shape is right
    {"do": "time", "warm": n, "inner": n, "count": n, "within": s}
                                                        -> seconds a call, up to `count` of them, each the mean of `inner`
                                                           calls; fewer once `within` seconds have passed
    {"do": "peak", "dtypes": [...]}                     -> the rates of a gauge

An exception is answered as {"reason": text}. `python -m tconv._bench.worker NAME THREADS` serves the peer of that name.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .._spec import Spec
from . import peers
from .layer import Layer
from .words import Cannot

_WARM = 0.05  # seconds of calls before the first estimate


class Worker:
    """One peer, and the layer it has prepared."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.peer: Any = None
        self.run: Any = None
        self.shape: tuple[int, ...] = ()

    def hello(self) -> dict[str, Any]:
        self.peer = self.make()
        return {"version": self.peer.version, "note": self.peer.note}

    def prepare(self, problem: str, dtype: str = "float32") -> dict[str, Any]:
        self.run = None
        spec = Spec.parse(problem)
        self.shape = spec.output_shape
        self.run = self.peer.prepare(spec, *Layer(problem, spec).arrays(dtype))
        start = time.perf_counter()
        calls = [self._mean(1)]
        while time.perf_counter() - start < _WARM and len(calls) < 1000:
            calls.append(self._mean(1))
        return {"seconds": min(calls)}

    def sample(self, positions: list[int]) -> dict[str, Any]:
        y = np.asarray(self.peer.result(self.run()))
        return {"shape": y.shape, "values": y.reshape(-1)[positions].astype(float).tolist() if y.shape == self.shape else []}

    def time(self, warm: int, inner: int, count: int, within: float) -> dict[str, Any]:
        end = time.perf_counter() + within
        if warm:
            self._mean(warm)
        seconds = [self._mean(inner)]
        while len(seconds) < count and time.perf_counter() < end:
            seconds.append(self._mean(inner))
        return {"seconds": seconds}

    def peak(self, dtypes: list[str]) -> dict[str, Any]:
        rates: dict[str, Any] = self.peer.peak(dtypes)
        return rates

    def _mean(self, inner: int) -> float:
        run, calls = self.run, range(inner)
        start = time.perf_counter()
        for _ in calls:
            run()
        return (time.perf_counter() - start) / inner


def serve(make: Callable[[], Any], kind: type[Worker] = Worker) -> None:
    """Answer requests about the peer that `make` gives until stdin ends."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    worker = kind(make)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"reason": _one_line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _one_line(error: Exception) -> str:
    """The kind and the first telling line of an exception; a peer's own refusal is its text alone."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:300] if lines else ""
    return text if isinstance(error, Cannot) else f"{type(error).__name__}: {text}"


def _die_with_parent() -> None:
    """A stopped process never sees its input end: ask Linux to kill it when the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    name, threads = sys.argv[1:]
    serve(lambda: peers.make(name, int(threads)))
