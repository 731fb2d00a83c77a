# SPDX-License-Identifier: Apache-2.0
"""A guard against slower kernels that no noisy machine upsets: it counts instructions (`python -m bench guard`).

Valgrind runs a few small layers, one of every class, on one thread and counts what each call executes: the same number in
every run, on any machine that runs the same binary. More than TOLERANCE over the committed count fails; it leaves room for
another compiler. Counts say nothing of caches and ports: they catch lost vectorisation, wasted lanes, new overhead, work
done twice. Valgrind knows AVX2 but not AVX-512, so the AVX2 kernels are what is counted.

Callgrind writes its counter out whenever the program enters the C library's getppid, which nothing else calls: a marker
that needs no symbols in our binary.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tconv
from tconv import Spec
from tconv._bench.layer import Layer

from .checkout import ROOT

BASELINE = Path(__file__).with_name("guard.json")
TOLERANCE = 1.15
PROBLEMS = (
    "c2:3 i5 k4 s2 p1", "c32:32 i12x12 k4 s2 p1", "c48:24 i16x16 k3 s2 p1:0", "c32:32 i16x16 k2 s2", "n2 c64:32 i4x4 k4 s2 p1",
    "c24:1 i24x24 k9 s2 p4:3", "c32:32 g32 i24x24 k4 s2 p1", "c16:16 g16 i20x20 k8 s4 p2", "c65:1 i16 k256 s64", "c32:16 i400 k8 s4 p2",
    "c16:16 i6x6x16 k2 s2", "c16:16 i5x5x6 k3 d2", "c256:128 i16x16 k2 s2", "c24:24 i20x24 k3 p1",
)  # fmt: skip


def main(words: list[str]) -> int:
    """Count, and compare with the committed counts or renew them."""
    parser = argparse.ArgumentParser("python -m bench guard", description="Instructions of small layers against the committed counts.")
    parser.add_argument("--update", action="store_true", help=f"write {BASELINE.relative_to(ROOT)}")
    asked = parser.parse_args(words)
    if not shutil.which("valgrind"):
        raise SystemExit("bench: the guard needs valgrind (Debian, Ubuntu: apt install valgrind)")
    found = count()
    if asked.update:
        BASELINE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    if not BASELINE.exists():
        raise SystemExit(f"bench: there is no {BASELINE.relative_to(ROOT)}: python -m bench guard --update")
    return report(json.loads(BASELINE.read_text(encoding="utf-8")), found)


def report(old: dict[str, int], new: dict[str, int]) -> int:
    """Print every count beside the committed one, then what is wrong, case by case; the exit status."""
    for name, now in new.items():
        ratio = f"{now / old[name]:6.3f} of the committed count" if name in old else "not committed"
        better = "better: renew with --update" if name in old and now < old[name] / TOLERANCE else ""
        print(f"{name:44} {now:12,d} instructions, {ratio} {better}".rstrip())
    wrong = [complaint for name in {**old, **new} if (complaint := _complaint(name, old.get(name), new.get(name)))]
    for complaint in wrong:
        print(f"guard: {complaint}")
    if wrong:
        print(f"guard: where this is meant, python3 dev.py guard --update renews {BASELINE.relative_to(ROOT)}")
    return int(bool(wrong))


def _complaint(name: str, old: int | None, new: int | None) -> str | None:
    """What is wrong with a case, as one line; None where nothing is."""
    case = " ".join(name.split())
    if old is None or new is None:
        return f"{case}: {'has no committed count' if old is None else 'is committed and no longer counted'}"
    allowed = int(old * TOLERANCE)
    if new <= allowed:
        return None
    return (
        f"{case}: {new:,d} instructions, allowed are {allowed:,d} ({old:,d} committed, and {TOLERANCE - 1:.0%}): {new / old - 1:.1%} more"
    )


def cases() -> dict[str, Callable[[], object]]:
    """What is counted: every problem through Operator, conv_transpose and both gradients."""
    found: dict[str, Callable[[], object]] = {}
    for line in PROBLEMS:
        spec = Spec.parse(line)
        x, w = Layer(line, spec).arrays()
        words: dict[str, Any] = {
            "stride": spec.stride,
            "padding": spec.crop,
            "dilation": spec.dilation,
            "groups": spec.groups,
            "threads": 1,
        }
        operator, out = tconv.Operator(w, **words), np.empty(spec.output_shape, np.float32)
        found[f"Operator        {line}"] = partial(operator, x, out=out)
        found[f"conv_transpose  {line}"] = partial(tconv.conv_transpose, x, w, out=out, **words)
        grad, by_x, by_w = np.random.default_rng(1).standard_normal(out.shape, np.float32), np.empty_like(x), np.empty_like(w)
        found[f"grad_input      {line}"] = partial(tconv.conv_transpose_grad_input, grad, w, spec.input_size, out=by_x, **words)
        found[f"grad_weight     {line}"] = partial(tconv.conv_transpose_grad_weight, x, grad, spec.kernel_size, out=by_w, **words)
    return found


def count() -> dict[str, int]:
    """Instructions of one call of every case, the second: plans are cached by then."""
    with tempfile.TemporaryDirectory() as folder:
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/counts", "--dump-before=getppid"]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run([*valgrind, sys.executable, "-m", __name__], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: valgrind failed:\n{done.stderr[-2000:]}")
        dumps = sorted(Path(folder).glob("counts.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(re.findall(r"^totals: (\d+)", path.read_text(), re.MULTILINE)[-1]) for path in dumps]
    names = done.stdout.splitlines()
    if len(totals) != 2 * len(names):
        raise SystemExit(f"bench: {len(totals)} markers for {len(names)} cases: something else calls getppid")
    return dict(zip(names, totals[1::2], strict=True))


def child() -> None:
    """Under Valgrind: a marker before and after the second call of every case, none of which pays for Python's garbage."""
    gc.disable()
    for name, run in cases().items():
        run()
        os.getppid()
        run()
        os.getppid()
        print(name)


if __name__ == "__main__":
    child()
