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
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from . import _core
from ._runtime import Array, fresh
from ._torch_arrays import array

_compare = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).memcmp  # without the interpreter's lock, unlike bytes
_compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


_ORDERS = 16  # packed forms of one weight that are kept: the layer, its adjoint, other crops and sizes below the stride


class Order(Protocol):
    """A plan, as far as packing is concerned: plans with the same `order` share packed weights."""

    @property
    def stencil(self) -> _core.Stencil: ...
    @property
    def order(self) -> str: ...


class _Kept:
    """What is kept of one weight as it is now; a weight that changes gets a new one, so that threads cannot mix the two."""

    __slots__ = ("copies", "packed", "place", "strides", "tensor", "version")

    def __init__(self, w: Tensor) -> None:
        key = id(w)
        self.tensor = weakref.ref(w, lambda _: _weights.pop(key, None))
        self.version, self.place, self.strides = _version(w), w.data_ptr(), w.stride()
        self.copies: dict[int, Tensor] = {}  # one, under 0: of two threads that copy at once the first is right for both
        self.packed: dict[str, Array | None] = {}  # by order; None where it was asked for once

    def holds(self, w: Tensor, frozen: bool) -> bool:
        """Whether the weight is what it was when it was first seen, as far as versions tell and, unless frozen, to the bit."""
        if self.version != _version(w) or self.place != w.data_ptr() or self.strides != w.stride():
            return False
        copy = self.copies.get(0)
        if copy is None or (frozen and self.version is not None):
            return True
        return not _compare(self.place, copy.data_ptr(), copy.nbytes)

    def pack(self, w: Tensor, plan: Order) -> Array | None:
        """The weight packed in one order, from the copy of it, or None where it does not lie densely."""
        copy = self.copies.get(0)
        if copy is None:
            copy = w.detach().clone()  # as it lies, where it is dense
            if copy.stride() != self.strides:
                return None
            copy = self.copies.setdefault(0, copy)
        found = fresh((plan.stencil.weight_elements,), np.dtype(np.float64 if w.dtype is torch.float64 else np.float32))
        plan.stencil.pack(array(copy), found)
        self.packed[plan.order] = found
        return found


_weights: dict[int, _Kept] = {}  # by id(weight); an entry goes with its weight


def packed(w: Tensor, plan: Order, frozen: bool) -> Array | None:
    """The weight packed in the plan's order, or None where it is to be packed for this call alone."""
    kept = _weights.get(id(w))
    if kept is None or kept.tensor() is not w or not kept.holds(w, frozen):
        kept = _weights[id(w)] = _Kept(w)
    if plan.order not in kept.packed:
        if len(kept.packed) < _ORDERS:
            kept.packed[plan.order] = None
        return None
    found = kept.packed[plan.order]
    return kept.pack(w, plan) if found is None else found


def _version(w: Tensor) -> int | None:
    """PyTorch's count of writes; tensors made in inference mode have none."""
    return None if w.is_inference() else w._version
