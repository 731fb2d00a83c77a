# SPDX-License-Identifier: Apache-2.0
"""The child process that holds one library: requests and answers are JSON lines on stdin and stdout (`python -m bench.worker`).

    {"do": "hello"}                                     -> version, note
    {"do": "prepare", "problem": LINE}                  -> seconds of one call, or reason
    {"do": "sample", "positions": [...]}                -> values of the output there
    {"do": "time", "warm": n, "inner": n, "count": n, "within": s}
                                                        -> seconds a call, up to `count` of them, each the mean of `inner`
                                                           calls; fewer once `within` seconds have passed
    {"do": "peak"}                                      -> gflops, gbytes of this machine

An exception is answered as {"reason": text}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from tconv import Spec

from . import machine, mixed, peers
from .layers import Layer
from .words import Cannot

_WARM = 0.05  # seconds of calls before the first estimate


class Worker:
    """One peer, and the layer it has prepared."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self.peer: Any = None
        self.run: Any = None

    def hello(self) -> dict[str, Any]:
        if self.name == "machine":
            return {"version": np.__version__, "note": ""}
        self.peer = mixed.MIXED[self.name](self.threads) if self.name in mixed.MIXED else peers.make(self.name, self.threads)
        return {"version": self.peer.version, "note": self.peer.note}

    def prepare(self, problem: str) -> dict[str, Any]:
        self.run = None
        spec = Spec.parse(problem)
        self.run = self.peer.prepare(spec, *Layer(problem, spec).arrays())
        start = time.perf_counter()
        calls = [self._mean(1)]
        while time.perf_counter() - start < _WARM and len(calls) < 1000:
            calls.append(self._mean(1))
        return {"seconds": min(calls)}

    def sample(self, positions: list[int]) -> dict[str, Any]:
        y = self.peer.result(self.run())
        return {"values": np.asarray(y).reshape(-1)[positions].astype(float).tolist(), "shape": y.shape}

    def time(self, warm: int, inner: int, count: int, within: float) -> dict[str, Any]:
        end = time.perf_counter() + within
        if warm:
            self._mean(warm)
        seconds = [self._mean(inner)]
        while len(seconds) < count and time.perf_counter() < end:
            seconds.append(self._mean(inner))
        return {"seconds": seconds}

    def peak(self) -> dict[str, Any]:
        return machine.peak(self.threads)

    def _mean(self, inner: int) -> float:
        run, calls = self.run, range(inner)
        start = time.perf_counter()
        for _ in calls:
            run()
        return (time.perf_counter() - start) / inner


def main(name: str, threads: int) -> None:
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    worker = Worker(name, threads)
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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:300] if lines else ""
    return text if isinstance(error, Cannot) else f"{type(error).__name__}: {text}"


def _die_with_parent() -> None:
    """A stopped process never sees its input end: ask Linux to kill it when the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
