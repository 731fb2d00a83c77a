# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries, by DLPack: read where they lie, and the result handed back as an array of the same library.

None of them is imported: who hands us an array has imported its library. NumPy's arrays never come here.
The names are those of the Python array API standard: `__dlpack__`, `__dlpack_device__`, `__array_namespace__`, `from_dlpack`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ._spec import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]

# DLPack's numbers of devices, of dlpack.h; the host's memory may be pinned for a GPU, which NumPy reads all the same.
DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 11: "cpu", 13: "cpu", 14: "oneapi",
           15: "webgpu", 16: "hexagon", 17: "maia"}  # fmt: skip
# Where `from_dlpack` is, for arrays without `__array_namespace__`, by the module of their type.
NAMESPACES = {"torch": "torch", "tensorflow": "tensorflow", "mlx": "mlx.core"}
ALIGNMENT = 64  # JAX copies what is aligned to less, and TensorFlow ends the process
# Arrays so large come from the system anew each time: GNU's allocator keeps none. NumPy asks for large pages, of which both ends of an
# array that begins anywhere would get none: 512 page faults, a millisecond.
_NEVER_KEPT, _LARGE_PAGE = 32 << 20, 2 << 20


class Home(NamedTuple):
    """The library of a call's arrays: its name, its module, and whether they are of bfloat16, which NumPy's DLPack lacks."""

    name: str
    namespace: Any
    bfloat16: bool

    def __call__(self, result: Array) -> Any:
        """The result as the library's array, over the same memory where the library allows it."""
        if self.bfloat16:
            return _as_type(self.namespace, self._take(result.view(np.int16)), "bfloat16")
        return self._take(result)

    def _take(self, array: Array) -> Any:
        if self.name == "tensorflow":  # takes a capsule
            return self.namespace.experimental.dlpack.from_dlpack(array.__dlpack__())
        return self.namespace.from_dlpack(array)


def is_foreign(value: Any) -> bool:
    """Whether a value is an array of another library."""
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray | np.generic)


def home(arrays: dict[str, Any], out: Any) -> Home | None:
    """The one library that all arrays of a call come from, None for NumPy; a mixture is refused."""
    given = {name: value for name, value in arrays.items() if value is not None}
    first = next((name for name, value in given.items() if is_foreign(value)), None)
    if first is None:
        return None
    found = _library(first, given[first])
    for name, value in given.items():
        if not is_foreign(value) or _library(name, value).name != found.name:
            rule = f"must be an array of {found.name}, as {first} is: all arrays of a call come from one library"
            raise ArgumentError(name, kind(value), rule)
    if out is not None:
        raise ArgumentError("out", kind(out), f"must be None for arrays of {found.name}, whose results are new arrays")
    return found


def read(name: str, value: Any) -> Array:
    """A view of another library's array, which must lie in the CPU's memory and need no gradient."""
    if getattr(value, "requires_grad", False):
        raise ArgumentError(name, kind(value), "requires grad, and gradients would be lost here: use tconv.torch, or give x.detach()")
    try:
        device, number = value.__dlpack_device__()
    except Exception as error:  # a tracer, a symbol, a meta tensor
        raise ArgumentError(name, kind(value), f"has no values to read: {_first_line(error)}") from None
    if DEVICES.get(int(device)) != "cpu":
        where = f"{DEVICES.get(int(device), f'DLPack device {int(device)}')}:{number}"
        raise ArgumentError(name, f"{kind(value)} on {where}", "must lie in the CPU's memory; tconv has no kernels for other devices")
    try:
        if _is_bfloat16(value):
            library = _library(name, value)
            return np.from_dlpack(_as_type(library.namespace, value, "int16")).view(_bfloat16(name))
        return np.from_dlpack(value)
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(name, kind(value), f"cannot be read through DLPack: {_first_line(error)}") from None


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array, aligned as the other libraries want it, so that they need no copy; a very large one at large pages."""
    size = prod(shape) * dtype.itemsize
    alignment = ALIGNMENT if size < _NEVER_KEPT else _LARGE_PAGE
    buffer = np.empty(size + alignment - 1, np.uint8)
    start = -buffer.ctypes.data % alignment
    return buffer[start : start + size].view(dtype).reshape(shape)


def kind(value: Any) -> str:
    """The type of a value by its full name, as errors show it."""
    found = type(value)
    return found.__name__ if found.__module__ == "builtins" else f"{found.__module__.partition('.')[0]}.{found.__name__}"


def _library(name: str, value: Any) -> Home:
    """The library of an array, by its array namespace or the table."""
    root = type(value).__module__.partition(".")[0]
    if hasattr(value, "__array_namespace__"):
        namespace = value.__array_namespace__()
        return Home(namespace.__name__.partition(".")[0], namespace, _is_bfloat16(value))
    namespace = sys.modules.get(NAMESPACES.get(root, root))
    if root != "tensorflow" and not hasattr(namespace, "from_dlpack"):
        raise ArgumentError(name, kind(value), f"is an array of {root}, which has no from_dlpack to take the result back")
    return Home(root, namespace, _is_bfloat16(value))


def _is_bfloat16(value: Any) -> bool:
    return "bfloat16" in str(getattr(value, "dtype", ""))


def _as_type(namespace: Any, array: Any, dtype: str) -> Any:
    """The same bits as another type of the library's."""
    wanted = getattr(namespace, dtype)
    view: Callable[[Any], Any] | None = getattr(array, "view", None)
    return view(wanted) if view else namespace.bitcast(array, wanted)


def _bfloat16(name: str) -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise ArgumentError(name, "bfloat16", "needs ml_dtypes, which gives NumPy this type: pip install ml_dtypes") from None
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
