# SPDX-License-Identifier: Apache-2.0
"""Facts about the machine, for whoever reads the times."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

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


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
