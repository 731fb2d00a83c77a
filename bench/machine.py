# SPDX-License-Identifier: Apache-2.0
"""The machine: what it is, and what it can do at most (multiply-adds and bytes a second, measured in the same run)."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_SIZE = 2048  # of the square matrices: large enough for the rate of the registers, small enough for 0.1 s
_FILL = 256 << 20  # bytes, beyond most last-level caches
_TRIES = 5
_FLAGS = re.compile(r"(avx|fma|amx|sse4|f16c|asimd|neon|sve)\w*")


def facts() -> dict[str, Any]:
    """Processor, cores for us, vector flags, memory, system."""
    text = _text("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", text)
    flags = re.search(r"(?:flags|Features)\s*: (.*)", text)
    memory = re.search(r"MemTotal:\s*(\d+)", _text("/proc/meminfo"))
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": sorted(f for f in flags[1].split() if _FLAGS.fullmatch(f)) if flags else [],
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def load() -> float | None:
    """The system's load average of the last minute: above our own threads, others disturbed the run."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def commit(root: Path) -> str:
    """The git commit of a checkout, with "-dirty" where the sources differ from it; "unknown" without git."""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("-dirty" if _git(root, "status", "--porcelain", "--", "src", "CMakeLists.txt") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak(threads: int) -> dict[str, float]:
    """The best rates of this moment: {"gflops", "gbytes"}, a multiply-add being two operations.

    Multiply-adds: float32 products of square matrices by NumPy, and by PyTorch where it is installed. Bytes: filling
    memory, one slice a thread.
    """
    a, b = (np.random.default_rng(seed).standard_normal((_SIZE, _SIZE), np.float32) for seed in (0, 1))
    c, block = np.empty_like(a), np.ones(_FILL // 4, np.float32)
    slices = np.array_split(block, threads)
    with ThreadPoolExecutor(threads) as pool:
        fill = _best(lambda: list(pool.map(lambda part: part.fill(1.0), slices)))
    multiply = min(_best(lambda: np.matmul(a, b, out=c)), _torch_multiply(a, b, threads))
    return {"gflops": 2 * _SIZE**3 / multiply / 1e9, "gbytes": _FILL / fill / 1e9}


def _torch_multiply(a: Any, b: Any, threads: int) -> float:
    try:
        import torch
    except ImportError:
        return float("inf")
    torch.set_num_threads(threads)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    z = torch.empty_like(x)
    return _best(lambda: torch.mm(x, y, out=z))


def _best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_TRIES + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def environment(threads: int) -> dict[str, str]:
    """What NumPy's matrix libraries must be told before they are loaded."""
    return {name: str(threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
