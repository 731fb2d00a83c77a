# SPDX-License-Identifier: Apache-2.0
"""What the machine can do at most, measured in the same run: the best rate of a large matrix product, and of writing memory.

Every library that has a matrix product is asked in a process of its own, like a peer: "gauge:numpy" and "gauge:torch", and
with "+avx2" again without AVX-512, which the library must confirm in its own words. One that is absent or crashes measures
nothing; of the others the best counts.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .layer import Array
from .words import Cannot

GAUGES = ("gauge:numpy", "gauge:torch")
AVX2_GAUGES = ("gauge:numpy+avx2", "gauge:torch+avx2")

_SIZE = 2048  # of the square matrices: large enough for the rate of the registers, small enough for 0.1 s
_FILL = 256 << 20  # bytes, beyond most last-level caches
_TRIES = 4
_ALL = {"OPENBLAS_CORETYPE": ""}  # whatever kernels the user's shell holds it to
_AVX2 = {"OPENBLAS_CORETYPE": "Haswell", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

Rates = dict[str, float]


def environment(name: str, threads: int) -> dict[str, str]:
    """What a gauge's matrix libraries must be told before they are loaded."""
    told = {variable: str(threads) for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**told, **(_AVX2 if name.endswith("+avx2") else _ALL)}


def best(measured: Iterable[Rates]) -> Rates:
    """The largest of every rate.

    >>> best([{"gflops": 90.0, "gbytes": 8.0}, {"gflops": 100.0}])
    {'gflops': 100.0, 'gbytes': 8.0}
    """
    found: Rates = {}
    for rates in measured:
        found |= {name: max(rate, found.get(name, 0.0)) for name, rate in rates.items()}
    return found


class Numpy:
    """NumPy's matrix product; memory is written by its fill, and by the C library's memset and memmove.

    Those of the C library may write past the caches; of a copy only the written bytes count.
    """

    note = ""

    def __init__(self, threads: int) -> None:
        self.threads, self.version = threads, np.__version__

    def keeps_to_avx2(self) -> bool:
        """Whether the library says so itself."""
        return _openblas_core() == "Haswell"

    def product(self, a: Array, b: Array) -> Callable[[], object]:
        c = np.empty_like(a)
        return lambda: np.matmul(a, b, out=c)

    def writers(self) -> list[Callable[[Array, Array], object]]:
        """Ways to write all of the first array; the second holds as much."""
        return [lambda to, like: to.fill(1), lambda to, like: ctypes.memset(to.ctypes.data, 1, to.nbytes),
                lambda to, like: ctypes.memmove(to.ctypes.data, like.ctypes.data, to.nbytes)]  # fmt: skip

    def rates(self, dtypes: list[str], avx2: bool) -> Rates:
        """GFLOP/s, a multiply-add being two operations, and GB/s written."""
        if avx2:
            return {"gflops_avx2": self._multiply("float32")}
        named = {"float32": "gflops", "float64": "gflops_float64"}
        return {**{named[dtype]: self._multiply(dtype) for dtype in dtypes}, "gbytes": self._write()}

    def _multiply(self, dtype: str) -> float:
        a, b = (np.random.default_rng(seed).standard_normal((_SIZE, _SIZE), np.dtype(dtype).type) for seed in (0, 1))
        return 2 * _SIZE**3 / _least(self.product(a, b)) / 1e9

    def _write(self) -> float:
        """One slice a thread."""
        to, like = (np.array_split(np.ones(_FILL, np.uint8), self.threads) for _ in range(2))
        with ThreadPoolExecutor(self.threads) as pool:
            seconds = min(_least(lambda write=write: list(pool.map(write, to, like))) for write in self.writers())  # type: ignore[misc]
        return _FILL / seconds / 1e9


class Torch(Numpy):
    """PyTorch's matrix product and fill_."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.threads, self.torch, self.version = threads, torch, torch.__version__

    def keeps_to_avx2(self) -> bool:
        text = _said_by_mkl(self.torch)
        return "AVX2" in text and "AVX-512" not in text

    def product(self, a: Array, b: Array) -> Callable[[], object]:
        x, y = self.torch.from_numpy(a), self.torch.from_numpy(b)
        z = self.torch.empty_like(x)
        return lambda: self.torch.mm(x, y, out=z)

    def _write(self) -> float:
        """PyTorch divides the work itself."""
        to = self.torch.ones(_FILL, dtype=self.torch.uint8)
        return _FILL / _least(lambda: to.fill_(1)) / 1e9


class Gauge:
    """A library's rates, as a worker asks for them; made from what follows "gauge:" in the name."""

    note = ""

    def __init__(self, name: str, threads: int) -> None:
        library, _, limit = name.partition("+")
        self.avx2 = limit == "avx2"
        self.library = {"numpy": Numpy, "torch": Torch}[library](threads)
        self.version = self.library.version
        if self.avx2 and not self.library.keeps_to_avx2():
            raise Cannot(f"{library} does not say that its matrix product keeps to AVX2")

    def peak(self, dtypes: list[str]) -> Rates:
        return self.library.rates(dtypes, self.avx2)


def _openblas_core() -> str | None:
    """The kernels that NumPy's OpenBLAS has chosen, by its own word; None where NumPy multiplies by another library."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    for path in sorted({line.split(maxsplit=5)[-1] for line in lines if "openblas" in line}):
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename64_", "openblas_get_corename"):
            if hasattr(library, name):
                ask = getattr(library, name)
                ask.restype = ctypes.c_char_p
                return str(ask().decode())
    return None


def _said_by_mkl(torch: Any) -> str:
    """What the library behind torch.mm prints of itself when asked to: its version and the instructions it uses."""
    with tempfile.TemporaryFile() as file:
        stdout = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
                torch.mm(torch.ones(8, 8), torch.ones(8, 8))
            ctypes.CDLL(None).fflush(None)
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        file.seek(0)
        return file.read().decode(errors="replace")


def _least(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls; the first is not counted."""
    run()
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
