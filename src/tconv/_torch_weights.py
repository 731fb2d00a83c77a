# SPDX-License-Identifier: Apache-2.0
"""Packed weights that are kept between calls, for as long as their tensor lives and holds the values they were packed from.

PyTorch counts writes to a tensor in its `_version`, but not those through `.data`, through a NumPy array over the same memory, or
from another process. So a packed weight comes with a copy of the bytes it was packed from, and is used only where the tensor still
holds these: comparing them takes a fraction of packing them. (A frozen weight, which `fold_` makes, is trusted to have its versions.)

A weight is packed for keeping when it is seen a second time in one version: in training, where each step makes a new version,
nothing is kept and nothing compared.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import _core
from ._runtime import Array

_compare = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).memcmp  # without the interpreter's lock, unlike bytes
_compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Order(Protocol):
    """A plan, as far as packing is concerned: plans with the same `order` share packed weights."""

    @property
    def stencil(self) -> _core.Stencil: ...
    @property
    def order(self) -> tuple[Any, ...]: ...


class _Kept:
    """What is kept of one weight: the orders it was asked for, and from the second time on its packed forms."""

    __slots__ = ("copy", "packed", "place", "tensor", "version")

    def __init__(self, w: Tensor) -> None:
        key = id(w)
        self.tensor = weakref.ref(w, lambda _: _weights.pop(key, None))
        self.forget(w)

    def forget(self, w: Tensor) -> None:
        """Begin anew: the weight holds other values."""
        self.version, self.place = _version(w), w.data_ptr()
        self.copy: Tensor | None = None
        self.packed: dict[Any, Array | None] = {}

    def holds(self, w: Tensor, frozen: bool) -> bool:
        """Whether the weight is what it was when it was first seen, as far as versions tell and, unless frozen, to the bit."""
        if self.version != _version(w) or self.place != w.data_ptr():
            return False
        if self.copy is None or (frozen and self.version is not None):
            return True
        return not _compare(self.place, self.copy.data_ptr(), self.copy.nbytes)


_weights: dict[int, _Kept] = {}  # by id(weight); an entry goes with its weight


def packed(w: Tensor, plan: Order, dtype: torch.dtype, frozen: bool) -> Array | None:
    """The weight packed in the plan's order, or None where it is to be packed for this call alone."""
    kept = _weights.get(id(w))
    if kept is None or kept.tensor() is not w:
        kept = _weights[id(w)] = _Kept(w)
    elif not kept.holds(w, frozen):
        kept.forget(w)
    if plan.order not in kept.packed:
        kept.packed[plan.order] = None  # asked for once
        return None
    found = kept.packed[plan.order]
    return _pack(kept, w, plan, dtype) if found is None else found


def _pack(kept: _Kept, w: Tensor, plan: Order, dtype: torch.dtype) -> Array | None:
    if kept.copy is None:
        copy = w.detach().clone()  # as it lies, where it is dense
        if copy.stride() != w.stride():
            return None
        kept.copy = copy
    found = np.empty(plan.stencil.weight_elements, np.float64 if dtype is torch.float64 else np.float32)
    plan.stencil.pack(kept.copy.to(dtype).numpy(force=True), found)
    kept.packed[plan.order] = found
    return found


def _version(w: Tensor) -> int | None:
    """PyTorch's count of writes; tensors made in inference mode have none."""
    return None if w.is_inference() else w._version
