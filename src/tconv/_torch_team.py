# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own threads for the core, where PyTorch's are those of an OpenMP runtime.

Such a runtime's threads wait for the next loop by spinning, for milliseconds. A pool of ours beside it would find its cores taken at every
change from a layer of PyTorch's to one of ours.
"""

from __future__ import annotations

import ctypes

import torch

from . import _core


def join() -> bool:
    """Run the core's loops on the team of the runtime that PyTorch is linked to; False where there is none with GNU's entry points."""
    try:
        library = ctypes.CDLL(torch._C.__file__)  # loaded already; a symbol is looked for in all that it is linked to
        parallel, number = (ctypes.cast(f, ctypes.c_void_p).value for f in (library.GOMP_parallel, library.omp_get_thread_num))
    except (OSError, AttributeError, TypeError):  # the last of a stand-in for PyTorch, as builds of documents have
        return False
    if not parallel or not number:
        return False
    _core.use_team(parallel, number)
    return True
