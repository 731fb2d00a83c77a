# SPDX-License-Identifier: Apache-2.0
"""What surrounds a call to the core: kernels and threads, dtypes, and the arrays that may be handed over."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any

import numpy as np

from . import _core, _foreign
from ._problem import check_bias
from ._spec import ArgumentError, integer

Array = np.ndarray[Any, np.dtype[Any]]

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)

try:
    __version__ = version("tconv")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_LARGE = 1 << 16  # bytes of an array that is worth a microsecond of aligning
_FEW = 4096  # elements that NumPy converts in microseconds

_threads: int | None = None  # None: as many as there are processors for us


def get_num_threads() -> int:
    """How many threads a call uses when it does not say: all processors this process may run on, unless set."""
    return _threads or _processors()


def set_num_threads(n: int | None) -> None:
    """Set how many threads calls use by default (at least 1); None goes back to all processors.

    Results do not depend on it, to the bit.

    >>> import tconv
    >>> tconv.set_num_threads(1)
    >>> tconv.get_num_threads()
    1
    >>> tconv.set_num_threads(None)
    """
    global _threads
    _threads = None if n is None else thread_count(n, "n")
    _core.set_default_threads(get_num_threads())


def thread_count(threads: int | None, name: str = "threads") -> int:
    """The `threads` argument of a call as a number."""
    if threads is None:
        return get_num_threads()
    count = integer(name, threads)
    if not 1 <= count <= 1024:
        raise ArgumentError(name, threads, "must lie in [1, 1024], or be None for the default")
    return count


@lru_cache(maxsize=1)
def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernels() -> tuple[str, ...]:
    """Names of the kernels this processor runs, best first; each may be given as `algorithm`.

    A name is METHOD_ISA. Direct methods multiply every tap: a vector's lanes run over output "positions", over output
    "channels", in "depthwise" layers over the groups, or along their "rows"; "direct" takes the one that is estimated fastest
    for the problem. "strassen" takes 7 multiplications for 8 where kernels are as long as their strides, and rounds 1.2 to
    1.6 times as much (Strassen 1969). "winograd" multiplies less and rounds a little worse, in tiles of 2 to 4 positions along each axis of a
    stride phase of 2 to 4 taps, or of pieces of 3 taps where it has more, whichever are estimated fastest; "winograd2" and
    "winograd4" take tiles of 2 and 4 where a phase or piece has 2 or 3 taps. All three refuse phases without taps, or with many more.
    "rowwise" has such tiles along one axis, from row to row or else along the row, lanes over positions, which pays where channels are
    few. "auto" takes whatever is estimated fastest, but for "winograd2" and "winograd4".

    >>> import tconv
    >>> [name for name in tconv.kernels() if name.endswith("scalar")][:5]
    ['auto_scalar', 'direct_scalar', 'positions_scalar', 'channels_scalar', 'depthwise_scalar']
    """
    return _names(False)


@lru_cache(maxsize=2)
def _names(all_of_this_build: bool) -> tuple[str, ...]:
    return tuple(f"{method}_{isa}" for isa, supported in _core.isas() if supported or all_of_this_build for method in _core.methods())


def kernel_for(algorithm: str) -> str:
    """The kernel that an `algorithm` argument means: a method alone is that of the best instruction set here."""
    found = _by_name().get(algorithm) if isinstance(algorithm, str) else None
    if found:
        return found
    names = kernels()
    rule = "is not run by this processor" if algorithm in _names(True) else "is not known"
    raise ArgumentError("algorithm", algorithm, f"{rule}; choose one of {', '.join((*_core.methods(), *names))}")


@lru_cache(maxsize=1)
def _by_name() -> dict[str, str]:
    names = kernels()
    return {name: name for name in names} | {m: next(n for n in names if n.startswith(f"{m}_")) for m in _core.methods()}


def config() -> dict[str, Any]:
    """Facts about this build and machine, as `show_config` prints them."""
    return {
        "tconv": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "kernels": {name: name in kernels() for name in _names(True)},
        "kernel": kernels()[0],
        "threads": get_num_threads(),
    }


def show_config() -> None:
    """Print version, machine, kernels and threads: what a bug report needs."""
    for key, value in config().items():
        if isinstance(value, dict):
            value = ", ".join(name if on else f"{name} (not on this processor)" for name, on in value.items())
        print(f"{key:10} {value}")


def compute_dtype(name: str, array: Array) -> np.dtype[Any]:
    """The dtype the core computes in: float64 for float64, float32 for float32, float16 and bfloat16."""
    dtype = array.dtype
    if dtype is _SINGLE or dtype is _DOUBLE:
        return dtype
    if not dtype.isnative:
        raise ArgumentError(name, dtype.str, "must be in the machine's byte order")
    if dtype.kind == "f" and dtype.itemsize == 8:
        return _DOUBLE
    if (dtype.kind == "f" and dtype.itemsize in (2, 4)) or dtype.name == "bfloat16":
        return _SINGLE
    raise ArgumentError(name, dtype.name, "must be an array of float32, float64, float16 or bfloat16")


def same_dtype(first: tuple[str, Array], *others: tuple[str, Array]) -> None:
    """All arrays of a call share one dtype; nothing is promoted silently."""
    for name, array in others:
        if array.dtype != first[1].dtype:
            raise ArgumentError(name, array.dtype.name, f"must have the dtype of {first[0]}, {first[1].dtype.name}")


def as_array(name: str, value: Any) -> Array:
    """An array argument: an ndarray, a view of another library's array, or what NumPy makes one of."""
    if isinstance(value, np.ndarray):
        return value
    if _foreign.is_foreign(value):
        return _foreign.read(name, value)
    try:
        return np.asarray(value)
    except Exception as error:
        raise ArgumentError(name, type(value).__name__, f"must be an array ({error})") from None


def arrive(out: Any, **arrays: Any) -> tuple[list[Array], _foreign.Home | None]:
    """All arrays of a call, None for an absent bias, and the library that its results go back to: None for NumPy's."""
    home = _foreign.home(arrays, out)
    found: list[Any] = [None if value is None and name == "bias" else as_array(name, value) for name, value in arrays.items()]
    return found, home


def usable(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether the core can use the array as it lies: dtype, byte order, alignment, strides of whole elements."""
    if array.dtype != dtype:
        return False
    flags = array.flags
    return flags.aligned and (flags.c_contiguous or not any(s % array.itemsize for s in array.strides))


def readable(array: Array, dtype: np.dtype[Any], threads: int | None = None) -> Array:
    """The array as the core can read it: itself, or a copy where it is not usable."""
    if usable(array, dtype):
        return array
    if (dense := _dense_half(array)) is None or dtype != _SINGLE:
        return np.array(array, dtype=dtype, order="K", copy=True)
    wide = np.empty(dense.shape, dtype)
    _core.widen(kernels()[0], _bits(dense), wide.reshape(-1), dense.dtype.kind != "f", threads or get_num_threads())
    return wide if dense is array else wide.transpose(np.argsort(_order(array)))


def stored(array: Array) -> Array:
    """The array as a layer of the core reads it: half precision as its bits, dense."""
    if array.dtype.itemsize != 2:
        return readable(array, array.dtype)
    dense = np.ascontiguousarray(array)
    return (dense if dense.flags.aligned else dense.copy()).view(np.uint16)


def write(result: Array, run: Callable[[Array], object]) -> Array:
    """Run a layer of the core into the result, by way of another array where the core cannot write the result itself."""
    half, flags = result.dtype.itemsize == 2, result.flags
    fits = flags.aligned and flags.c_contiguous if half else usable(result, result.dtype)
    target = result if fits else np.empty(result.shape, result.dtype)
    run(target.view(np.uint16) if half else target)
    if target is not result:
        result[...] = target
    return result


def into(result: Array, dtype: np.dtype[Any], run: Callable[[Array], object], threads: int | None = None) -> Array:
    """Run into the result, by way of an array of the computing dtype where the core cannot write the result itself."""
    if usable(result, dtype):
        run(result)
        return result
    wide = np.empty(result.shape, dtype)
    run(wide)
    if result.flags.c_contiguous and (dense := _dense_half(result)) is not None and dtype == _SINGLE:
        _core.narrow(kernels()[0], wide.reshape(-1), _bits(dense), dense.dtype.kind != "f", threads or get_num_threads())
    else:
        with np.errstate(over="ignore"):  # beyond float16's range lies infinity, as in float32
            result[...] = wide
    return result


def _bits(dense: Array) -> Array:
    return dense.reshape(-1).view(np.uint16)


def _order(array: Array) -> list[int]:
    """The axes from the one of the longest steps to that of the shortest."""
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])


def _dense_half(array: Array) -> Array | None:
    """An array of half precision that fills its memory, with its axes in their order there; None for others, and where NumPy is as fast."""
    if array.size < _FEW or array.dtype.itemsize != 2 or not array.flags.aligned or not array.dtype.isnative:
        return None
    dense = array if array.flags.c_contiguous else array.transpose(_order(array))
    return dense if dense.flags.c_contiguous else None


def bias_array(bias: Any, channels: int, like: Array, problem: object = None) -> Array:
    """The bias as an array of the dtype of `like` and the shape (channels,)."""
    array = as_array("bias", bias)
    same_dtype(("w", like), ("bias", array))
    check_bias(array.shape, channels, problem)
    return array


def fresh(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array; a large one begins at a whole line of the caches, so that vectors do and may be written past them."""
    return np.empty(shape, dtype) if prod(shape) * dtype.itemsize < _LARGE else _foreign.aligned(shape, dtype)


def result(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Iterable[Array], problem: object) -> Array:
    """Where the result goes: a new array, or `out` once it is known to be fit for it."""
    if out is None:
        return fresh(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise ArgumentError("out", type(out).__name__, "must be a NumPy array", problem)
    if out.shape != shape:
        raise ArgumentError("out", out.shape, f"must have the shape of the result, {shape}", problem)
    if out.dtype != dtype:
        raise ArgumentError("out", out.dtype.name, f"must have the dtype of the result, {dtype.name}", problem)
    flags = out.flags
    if not flags.writeable:
        raise ArgumentError("out", out.shape, "is read-only", problem)
    if not flags.c_contiguous and _overlaps_itself(out):
        raise ArgumentError("out", out.strides, "overlaps itself: its strides let two elements share memory", problem)
    for array in inputs:
        if np.may_share_memory(out, array) and _share(out, array):
            raise ArgumentError("out", out.shape, "overlaps an input in memory", problem)
    return out


def _share(a: Array, b: Array) -> bool:
    """Whether two arrays whose bounds overlap share an element; a question too hard to settle quickly counts as yes."""
    try:
        return bool(np.shares_memory(a, b, max_work=10_000))  # type: ignore[arg-type]  # NumPy's stub knows only -1 and 0
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array: Array) -> bool:
    """Sufficient for every view made by slicing and transposing: each stride steps over all that the smaller ones span."""
    if not array.size:
        return False
    span = array.itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < span:
            return True
        span += stride * (size - 1)
    return False


def check_memory(shape: tuple[int, ...], itemsize: int, problem: object) -> None:
    """Refuse a result larger than the machine's memory before asking for it."""
    needed = prod(shape) * itemsize
    if needed > _memory():
        raise ArgumentError("output shape", shape, f"needs {needed / 2**30:.1f} GiB, more than this machine's memory of "
                            f"{_memory() / 2**30:.1f} GiB", problem)  # fmt: skip


@lru_cache(maxsize=1)
def _memory() -> int:
    """Bytes of memory, or 2**40 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**40
