# SPDX-License-Identifier: Apache-2.0
"""PyTorch's CPU tensors as the core's arrays, over the same memory: half precision as its bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ._runtime import Array

# What each dtype is summed in.
SUMMED = {torch.float32: torch.float32, torch.float64: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes; sounds have no such format


def is_last(tensor: Tensor) -> bool:
    """Whether a tensor lies channels-last, and not also channels-first."""
    if tensor.is_contiguous():
        return False
    form = _LAST.get(tensor.ndim)
    return form is not None and tensor.is_contiguous(memory_format=form)


def memory_format(rank: int, last: bool) -> torch.memory_format:
    """The format of a batch with `rank` spatial axes."""
    return _LAST[rank + 2] if last else torch.contiguous_format


def array(tensor: Tensor) -> Array:
    """A tensor's memory; half precision, which the core takes densely, is copied where it lies otherwise."""
    if tensor.dtype.itemsize > 2:
        found: Array = tensor.numpy(force=True)
        return found
    bits: Array = tensor.contiguous().view(torch.int16).numpy(force=True).view(np.uint16)
    return bits


def batch(tensor: Tensor, last: bool) -> Array:
    """A batch as the core takes it: (N, C, *size), or (N, *size, C) of a channels-last problem."""
    return array(tensor.permute(0, *range(2, tensor.ndim), 1) if last else tensor)
