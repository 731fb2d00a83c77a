# SPDX-License-Identifier: Apache-2.0
"""What a call needs beyond its arrays: the peak of the resident set during the first call (`python -m bench memory`).

Every figure comes from a process of its own. It imports everything and calls another, small layer with as many threads, so
that libraries, stacks and the interpreter's own caches are there; makes and touches input, weight and output; gives freed
memory back to the system; resets the kernel's high-water mark; and calls once. What the mark rose by is the packed weight,
which is stated apart, and the workspace. `Operator` keeps a copy of the weight in the place of the one it was given.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tconv
from tconv import Spec
from tconv._bench import machine
from tconv._bench.layer import Layer
from tconv._bench.progress import Progress
from tconv._why import explain

from . import checkout, layers
from .store import Store
from .view import View, markdown, mib

CALLS = ("Operator", "conv_transpose")
LIMIT = 8 * 2**20  # bytes a thread: the target
WARM = "n2 c24:40 i9x9 k4 s2 p1"
_HANG = 180.0  # seconds

Entry = dict[str, Any]


def main(words: list[str]) -> int:
    """Measure and print; the exit status tells whether every layer keeps within the limit."""
    parser = argparse.ArgumentParser("python -m bench memory", description="Peak memory of a call beyond input, weight and output.")
    parser.add_argument("--layers", nargs="+", default=["*"], metavar="GLOB", help="names of layers, or problem lines")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--into", type=Path, metavar="RESULT.json", help="keep the figures in a file of results of this commit and machine")
    asked = parser.parse_args(words)
    chosen = layers.select(asked.layers, layers.read())
    store = Store.of(asked.into, {"commit": checkout.commit(), "machine": machine.facts()})
    with Progress(len(chosen)) as progress:
        run(chosen, asked.threads, store, progress, again=True)
    return int(any(excess(entry) > LIMIT for entry in store.data["memory"]))


def run(chosen: Sequence[Layer], threads: Sequence[int], store: Store, progress: Progress, again: bool = False) -> None:
    """Keep an entry for every layer, call and number of threads that the store lacks, or for all `again`."""
    for layer in chosen:
        progress.now(f"{layer.name}, memory")
        for count in threads:
            for call in CALLS:
                key = {"layer": layer.name, "problem": str(layer.spec), "call": call, "threads": count}
                if again or not store.has("memory", key):
                    store.keep("memory", key, measure(str(layer.spec), call, count))
        mine = [entry for entry in store.data["memory"] if entry["problem"] == str(layer.spec) and entry["threads"] in threads]
        progress.done(f"{layer.name:28} MiB a thread: " + ", ".join(f"{e['call']} {e['threads']}t {mib(excess(e))}" for e in mine))


def excess(entry: Entry) -> float:
    """Bytes a thread beyond input, weight, packed weight and output."""
    return max(0.0, entry["peak"] - entry["packed"]) / int(entry["threads"])


def measure(problem: str, call: str, threads: int) -> dict[str, int]:
    """`peak`, the rise of the resident set during a call, and `packed`, the size of the packed weight; bytes."""
    words = [sys.executable, "-m", __name__, problem, call, str(threads)]
    done = subprocess.run(words, cwd=checkout.ROOT, capture_output=True, text=True, timeout=_HANG, check=False)
    if done.returncode:
        raise SystemExit(f"bench: memory: {' '.join(words[3:])}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def child(problem: str, call: str, threads: int) -> dict[str, int]:
    """In the process of its own."""
    _prepared(Spec.parse(WARM), call, threads)()
    spec = Spec.parse(problem)
    packed = explain(spec, threads=threads, kept=call == "Operator").weight_bytes
    return {"peak": rise(_prepared(spec, call, threads)), "packed": packed}


def rise(run: Callable[[], object]) -> int:
    """By how many bytes the resident set grows at most during a call."""
    _give_back()
    mark = Path("/proc/self/clear_refs")
    if mark.exists() and os.access(mark, os.W_OK):
        mark.write_text("5")  # Linux: the high-water mark becomes what is resident now
        before = _resident("VmHWM")
        run()
        return _resident("VmHWM") - before
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def _prepared(spec: Spec, call: str, threads: int) -> Callable[[], object]:
    """A call with all its arrays touched."""
    x, w = Layer(str(spec), spec).arrays()
    out = np.ones(spec.output_shape, np.float32)
    words: dict[str, Any] = {"stride": spec.stride, "padding": spec.crop, "dilation": spec.dilation, "groups": spec.groups}
    if call == "Operator":
        return partial(tconv.Operator(w, threads=threads, **words), x, out=out)
    return partial(tconv.conv_transpose, x, w, out=out, threads=threads, **words)


def _give_back() -> None:
    """Freed memory that the C library keeps would hide what the call takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def table(view: View) -> str:
    """Every layer: the packed weight, and MiB a thread of each call beyond it and beyond input, weight and output."""
    entries = view.data["memory"]
    if not entries:
        return "Not measured in this run."
    columns = list(dict.fromkeys((e["threads"], e["call"]) for e in sorted(entries, key=lambda e: (e["threads"], CALLS.index(e["call"])))))
    found = {(e["layer"], e["threads"], e["call"]): e for e in entries}
    lines = []
    for layer in dict.fromkeys(e["layer"] for e in entries):
        mine = [found.get((layer, *column)) for column in columns]
        packed = next(e["packed"] for e in mine if e)
        lines.append([layer, mib(packed), *(mib(excess(e)) if e else "-" for e in mine)])
    heads = ["layer", "packed weight, MiB", *(f"{call}, {count} thread{'s' * (count > 1)}" for count, call in columns)]
    worst = max(entries, key=excess)
    legend = (f"MiB a thread, beyond input, weight, packed weight and output; the most is {mib(excess(worst))}, by {worst['call']} "
              f"on {worst['layer']}; the target is at most {mib(LIMIT)}.")  # fmt: skip
    return f"{legend}\n\n{markdown(heads, lines)}"


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
